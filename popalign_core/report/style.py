"""The page's style sheet: light, readable on a phone, printable."""

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --wash: #f6f8fa; --good: #0b5394; --bad: #a33b00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; }
main, header.top, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header.top { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 18px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0 10px; max-width: 46em; }
small, .soft, figcaption span { color: var(--soft); }
.verdict { margin: 20px 0 0; padding: 16px 20px; border: 2px solid var(--soft); border-left-width: 12px;
  border-radius: 6px; background: var(--wash); }
.verdict.improved { border-color: var(--good); }
.verdict.worse { border-color: var(--bad); border-style: double; border-left-width: 12px; }
.verdict p.headline { font-size: 1.4rem; line-height: 1.25; font-weight: 700; margin: 0 0 6px; }
.verdict ul { margin: 0; padding-left: 1.2em; }
.verdict li { margin: 3px 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-size: .82rem; color: var(--soft); border-bottom: 2px solid var(--ink); overflow-wrap: anywhere;
  min-width: 6em; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 10em; }
tr.group th { font-weight: 700; padding-top: 18px; background: none; }
td small { white-space: nowrap; }
table.runs td small { white-space: normal; overflow-wrap: anywhere; }
table.main .mark { display: inline-block; }
table.main td small, table.glance td small { display: block; line-height: 1.3; white-space: normal; }
ol.key { columns: 11em; font-size: .93rem; margin: 6px 0; }
.mark { white-space: nowrap; font-weight: 600; }
.mark i { font-style: normal; display: inline-block; width: 1.1em; }
.mark.improved { color: var(--good); }
.mark.worse { color: var(--bad); text-decoration: underline; }
.mark.unclear, .mark.doubtful, .mark.untested, .mark.unmeasured { color: var(--soft); font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(310px, 100%), 1fr)); gap: 8px 32px;
  align-items: start; }
.charts figure { margin: 0; max-width: 520px; }
.charts figcaption { font-weight: 600; margin: 10px 0 2px; }
.charts svg { display: block; width: 100%; height: auto; }
svg.defs { position: absolute; }
svg text { font: 11.5px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.soft { fill: var(--soft); font-size: 10.5px; }
svg text.value { font-size: 10.5px; font-weight: 600; paint-order: stroke; stroke: #fff; stroke-width: 3px; }
svg .axis { stroke: var(--ink); stroke-width: 1; }
svg .tick { stroke: var(--line); stroke-width: 1; }
svg .target { stroke: #000; stroke-width: 1.8; stroke-dasharray: 4 3; }
svg .whisker { stroke: #000; stroke-width: 1.4; }
svg .halo { stroke: #fff; stroke-width: 4; }
svg polyline { fill: none; }
svg .line-1 { stroke: #0b5394; stroke-width: 2.2; }
svg .line-2 { stroke: #4d7c0f; stroke-width: 2.2; stroke-dasharray: 7 3; }
svg .line-3 { stroke: #c25e00; stroke-width: 2.2; stroke-dasharray: 2 3; }
svg .dotted { stroke: #57606a; stroke-width: 1.2; stroke-dasharray: 1 3; }
svg .thin { stroke: #9aa7b4; stroke-width: .8; }
svg .thick { stroke: #0b5394; stroke-width: 2.2; }
svg .full { fill: var(--ink); stroke: #fff; stroke-width: 1; }
svg .hollow { fill: #fff; stroke: var(--ink); stroke-width: 1.6; }
svg .ring { fill: none; stroke: #0b5394; stroke-width: 1.1; }
svg .mean { stroke: #000; stroke-width: 3; }
svg .join { stroke: #57606a; stroke-width: 1.6; }
svg polyline.front { stroke: #57606a; stroke-width: 1.4; stroke-dasharray: 5 3; }
ul.notes { list-style: none; margin: 2px 0 12px; padding: 0; font-size: .85rem; color: var(--soft); }
p.warning { margin: 12px 0; padding: 8px 14px; border: 3px dashed var(--ink); }
article.systems { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr));
  gap: 8px 28px; }
article.systems h3 { grid-column: 1 / -1; margin-bottom: 0; }
article.systems figure { margin: 0; }
article.systems figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 76px); gap: 3px; }
.strip img { display: block; width: 100%; height: auto; background: var(--wash); }
.strip img.small { image-rendering: pixelated; }
article.two { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
article.two .strip { grid-auto-columns: minmax(0, 128px); }
pre.all { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; }
details { margin: 10px 0; }
summary { cursor: pointer; padding: 6px 0; color: var(--good); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; font-size: .9rem; margin: 8px 0; }
dt { color: var(--soft); }
dd { margin: 0; font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .85rem; padding-top: 24px; padding-bottom: 40px; }
@media (max-width: 720px) {
  main, header.top, footer { padding-left: 14px; padding-right: 14px; }
  table, tbody, tr, th, td { display: block; width: 100%; }
  thead { display: none; }
  tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  th, td { border: 0; padding: 1px 0; }
  tbody th { font-weight: 600; }
  tr.group { border-bottom: 2px solid var(--ink); padding-top: 16px; }
  td, table.main td { display: flow-root; padding-left: 8.2em; white-space: normal; }
  td.none { display: none !important; }
  td::before { content: attr(data-label); float: left; width: 7.6em; margin-left: -8.2em; color: var(--soft);
    overflow-wrap: anywhere; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; }
  h2, h3, summary, figcaption { break-after: avoid; }
  details.screen { display: none; }
  .verdict, tr, article.systems, figure, dl, h2, h3 { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  details::details-content { content-visibility: visible; height: auto; }
  .charts { grid-template-columns: 1fr 1fr; }
  h2 { margin-top: 18px; }
  table { font-size: .82rem; }
  th, td { padding: 4px 8px 4px 0; }
  table.main td { white-space: normal; }
}
"""
