// Keys, pictures of the next question ahead of time, and a closer look. Without this script all pages still work.
"use strict";

const zoom = document.getElementById("zoom");
let isSent = false;

// An answer is sent once, however often a key or a button is hit.
document.addEventListener("submit", (event) => {
  if (event.target.method === "dialog") return;
  if (isSent) event.preventDefault();
  isSent = true;
});

// A page out of the browser's memory shows a question that may be answered already.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || (zoom && zoom.open)) return;
  if (event.target.closest("input, textarea, select")) return;
  if (event.key === "Enter" && event.target.closest("a, button")) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}" i]:not([disabled])`);
  if (!target) return;
  event.preventDefault();
  target.click();
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-zoom]");
  if (zoom && link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    const picture = link.querySelector("img");
    Object.assign(zoom.querySelector("img"), { src: link.href, alt: picture.alt });
    zoom.showModal();
  } else if (zoom && event.target.closest("#zoom")) {
    zoom.close();
  }
});

window.addEventListener("load", () => {
  for (const address of (document.body.dataset.ahead || "").split(" ").filter(Boolean)) {
    new Image().src = address;
  }
});
