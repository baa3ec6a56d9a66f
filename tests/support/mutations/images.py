"""Mutations of images: other files with the same pixels, and files with none."""

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mutations.editing import BYSTANDERS, DEEP, HTML, NO_FILES, POINTER, cut, put
from mutations.image_world import (
    LAYOUTS,
    ImageWorld,
    Picture,
    Pixels,
    changed,
    encoded,
    lay_out,
    write_metadata,
)
from mutations.judging import Counted, Equal, Kind, Mutant, Mutate, Refused

WRONG = 3
TORN, NO_IMAGE, MISSING = "undecodable image", "not an image", "missing image"


def _orientation(pixels: Pixels, orientation: int, turns: int) -> bytes:
    """Turned, with a note of how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(np.rot90(pixels, turns)), "PNG", exif=exif.tobytes())


def _opaque(pixels: Pixels) -> Pixels:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def _animated(pixels: Pixels, kind: str, **options: Any) -> bytes:
    return encoded(pixels, kind, save_all=True, append_images=[Image.fromarray(255 - pixels)], **options)


LOSSLESS: dict[str, Callable[[Pixels, Random], bytes]] = {
    "PNG": lambda pixels, random: encoded(pixels, compress_level=random.randint(0, 9)),
    "opaque PNG": lambda pixels, random: encoded(_opaque(pixels)),
    "PNG of no orientation": lambda pixels, random: _orientation(pixels, 1, 0),
    "PNG held upright": lambda pixels, random: _orientation(pixels, *random.choice([(6, 1), (8, 3), (3, 2)])),
    "PNG with a resolution": lambda pixels, random: encoded(pixels, dpi=(300, 72)),
    "PNG and more behind it": lambda pixels, random: encoded(pixels) + random.randbytes(30),
    "animated PNG": lambda pixels, random: _animated(pixels, "PNG"),
    "BMP": lambda pixels, random: encoded(pixels, "BMP"),
    "DIB": lambda pixels, random: encoded(pixels, "DIB"),
    "TIFF": lambda pixels, random: encoded(
        pixels, "TIFF", compression=random.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])
    ),
    "TIFF of pages": lambda pixels, random: _animated(pixels, "TIFF"),
    "WebP": lambda pixels, random: encoded(pixels, "WEBP", lossless=True),
    "JPEG 2000": lambda pixels, random: encoded(pixels, "JPEG2000", irreversible=False),
    "PPM": lambda pixels, random: encoded(pixels, "PPM"),
    "TGA": lambda pixels, random: encoded(pixels, "TGA", compression=random.choice([None, "tga_rle"])),
    "SGI": lambda pixels, random: encoded(pixels, "SGI"),
    "PCX": lambda pixels, random: encoded(pixels, "PCX"),
}
NAMES = (
    *("{n}", "{n}.txt", "{n}.JPG", "{n}.PNG", "{n}.jfif", "{n}.avif", "Ü {n} ✓.png", "a.b.{n}.png", "-{n}.webp"),
    *("image ({n}).png", '"{n}", quoted.png', "{n}.png.tmp", "l" * 190 + "{n}.png", "{n}.csv", "{n}%20.jpeg"),
)


def _laid(world: ImageWorld, random: Random, folder: Path, pictures: Sequence[Picture]) -> list[Path]:
    return [lay_out(folder / "images", pictures, random.choice(LAYOUTS), random)]


def _reencoded(kind: str) -> Mutate:
    def mutate(world: ImageWorld, random: Random, folder: Path) -> Mutant:
        pictures = world.pictures
        for number in random.sample(range(len(pictures)), random.randint(1, len(pictures))):
            data = LOSSLESS[kind](world.pixels[number], random)
            pictures = changed(pictures, number, data=data)
        return Mutant(_laid(world, random, folder, pictures), Equal(), world.taker)

    return mutate


def _renamed(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    pictures = world.pictures
    for number in range(len(pictures)):
        name = random.choice(NAMES).format(n=number)
        kind = random.choice(["PNG", "BMP", "WebP", "TIFF"])
        pictures = changed(pictures, number, name=name, data=LOSSLESS[kind](world.pixels[number], random))
    return Mutant(_laid(world, random, folder, pictures), Equal(), world.taker)


def _nested(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    """In folders in folders, as the hub has it, some of them links."""
    layout, pictures = random.choice(LAYOUTS), world.pictures
    depth = random.choice(["train", "data/train", "a/b/c/d", "ü/(1)"])
    if layout == "folders" or random.random() < 0.5:
        place = lay_out(folder / "images" / depth, pictures, layout, random)
    else:  # metadata above, with either slash
        slash = random.choice(["/", "\\"])
        lay_out(folder / "images", [Picture(each.text, f"{depth}/{each.name}", each.data) for each in pictures],
                layout, random)  # fmt: skip
        (folder / "images" / f"metadata.{layout}").unlink()
        names = [(slash.join([*depth.split("/"), each.name]), str(each.text)) for each in pictures]
        place = write_metadata(folder / "images" / f"metadata.{layout}", names, random)
    if random.random() < 0.3 and place.is_dir():
        place.rename(folder / "elsewhere")
        place.symlink_to(folder / "elsewhere")
    return Mutant([folder / "images"], Equal(), world.taker)


def _other_layout(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    """In another order, in two places, as links, with hidden files beside."""
    pictures = random.sample(world.pictures, len(world.pictures))
    n = random.randint(1, len(pictures) - 1)
    places = [lay_out(folder / name, part, random.choice(LAYOUTS), random)
              for name, part in (("one", pictures[:n]), ("other", pictures[n:]))]  # fmt: skip
    for place in places:
        for name in (".DS_Store", "._0000.png", ".cache/x.png", ".gitattributes"):
            put(place / name, "\0\0")
    file = next(path for path in sorted(places[0].rglob("*.png")) if not path.name.startswith("._"))
    if random.random() < 0.5 and ".cache" not in file.parts:
        file.rename(folder / "blob")
        file.symlink_to(folder / "blob")
    return Mutant(random.sample(places, 2), Equal(), world.taker)


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says to be larger than any memory."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def _flipped(data: bytes, random: Random) -> bytes:
    """Of a PNG, a byte of its pixels: its checksum says so."""
    at = random.randrange(data.index(b"IDAT") + 4, len(data) - 16)
    return data[:at] + bytes([data[at] ^ random.randint(1, 255)]) + data[at + 1 :]


BROKEN: dict[str, Callable[[Pixels, Random], bytes]] = {
    "truncated PNG": lambda pixels, random: cut(encoded(pixels), random, 0.01, 0.9),
    "truncated JPEG": lambda pixels, random: cut(encoded(pixels, "JPEG"), random, 0.01, 0.8),
    "truncated WebP": lambda pixels, random: cut(encoded(pixels, "WEBP"), random, 0.01, 0.8),
    "truncated TIFF": lambda pixels, random: cut(encoded(pixels, "TIFF"), random, 0.01, 0.8),
    "truncated BMP": lambda pixels, random: cut(encoded(pixels, "BMP"), random, 0.01, 0.8),
    "truncated AVIF": lambda pixels, random: cut(encoded(pixels, "AVIF"), random, 0.01, 0.8),
    "a byte of its pixels": lambda pixels, random: _flipped(encoded(pixels), random),
    "random bytes": lambda pixels, random: b"\xfe\x00" + random.randbytes(random.randint(1, 5000)),
    "a text": lambda pixels, random: random.choice([HTML, POINTER, "a", DEEP[:50], "<svg/>"]).encode(),
    "nothing": lambda pixels, random: b"",
    "a bomb": lambda pixels, random: _bomb(*random.choice([(10**5, 10**5), (2**31 - 1, 2**31 - 1), (1, 2**30)])),
    "no size": lambda pixels, random: _bomb(*random.choice([(0, 8), (8, 0), (0, 0)])),
    "a header alone": lambda pixels, random: random.choice([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"]),
}  # fmt: skip


def _broken(kind: str) -> Mutate:
    def mutate(world: ImageWorld, random: Random, folder: Path) -> Mutant:
        pictures = world.pictures
        gone = random.sample(range(len(pictures)), random.randint(1, len(pictures) - 1))
        suffixes = [".png", ".jpg", ".JPEG", ".webp", ".tiff", ".bmp", ".avif", ".jfif"]
        for number in gone:
            data = BROKEN[kind](world.pixels[number], random)
            pictures = changed(pictures, number, name=f"{number}{random.choice(suffixes)}", data=data)
        # the same bytes for another prompt are another image
        result = (world.expected(*(world.texts[number] for number in gone)), {TORN: len(gone)})
        return Mutant(_laid(world, random, folder, pictures), Counted(result), world.taker)

    return mutate


def _all_broken(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    pictures = [Picture(each.text, each.name, cut(each.data, random, 0.0, 0.8)) for each in world.pictures]
    return Mutant(_laid(world, random, folder, pictures), Refused(WRONG, f"none of the 8 .*{TORN}"), world.taker)


def _more(pictures: Sequence[Picture], world: ImageWorld, random: Random, folder: Path, **drops: int) -> Mutant:
    counts = {reason.replace("_", " "): n for reason, n in drops.items()}
    layout = "folders" if drops.keys() == {"no_evaluation_prompt"} else random.choice(LAYOUTS[1:])
    place = lay_out(folder / "images", pictures, layout, random)
    return Mutant([place], Counted((world.expected(), counts)), world.taker)


def _strange_prompt(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    text = random.choice(["a photo of a clown", "judge", "x", "a photo of a judge and more"])
    more = [Picture(text, f"more{n}.png", encoded(world.pixels[n][:, ::-1])) for n in range(random.randint(1, 4))]
    return _more([*world.pictures, *more], world, random, folder, no_evaluation_prompt=len(more))


def _no_prompt(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    more = [Picture(None, f"more{n}.png", encoded(world.pixels[n][:, ::-1])) for n in range(random.randint(1, 4))]
    return _more([*world.pictures, *more], world, random, folder, no_prompt_named=len(more))


def _twice(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    again = random.sample(world.pictures, random.randint(1, 4))
    more = [Picture(each.text, f"again-{each.name}", each.data) for each in again]
    return _more([*world.pictures, *more], world, random, folder, same_image_twice=len(more))


def _no_images(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    """Files of other sorts: neither named like an image, nor one."""
    place = _laid(world, random, folder, world.pictures)[0]
    texts = {"notes.txt": HTML, "LICENSE": "MIT", "a.pdf": "%PDF-1.4", "b.zip": "PK\3\4", "c.svg": "<svg/>", "d": ""}
    texts |= {"e.safetensors": POINTER, "f.parquet": "PAR1", "README.md": BYSTANDERS["README.md"]}
    names = random.sample(list(texts), random.randint(1, len(texts)))
    for name in names:
        put(place / random.choice(["", "more/", "a/b/"]) / name, texts[name])
    if random.random() < 0.3:
        os.mkfifo(place / "pipe.png")
        names.append("pipe.png")
    return Mutant([place], Counted((world.expected(), {NO_IMAGE: len(names)})), world.taker)


def _gone(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    """Links to images that are not there any more."""
    place = lay_out(folder / "images", world.pictures, "folders", random)
    files = random.sample(sorted(place.rglob("*.png")), random.randint(1, 7))
    for file in files:
        file.unlink()
        file.symlink_to(folder / "gone.png")
    texts = [file.parent.name.replace("_", " ").lower() for file in files]
    return Mutant([place], Counted((world.expected(*texts), {MISSING: len(files)})), world.taker)


def _nothing_names_them(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    place = folder / "images"
    kinds = random.sample(["loose", "empty"], 1)
    for picture in world.pictures if kinds == ["loose"] else []:
        put(place / picture.name, picture.data)
    place.mkdir(exist_ok=True)
    return Mutant([place], Refused(WRONG, "nothing names the prompt|holds no images"), world.taker)


def _metadata(change: Callable[[Path, str, Random], Any], names: str, *layouts: str) -> Mutate:
    def mutate(world: ImageWorld, random: Random, folder: Path) -> Mutant:
        layout = random.choice(layouts or LAYOUTS[1:])
        place = lay_out(folder / "images", world.pictures, layout, random)
        file = place / f"metadata.{layout}"
        change(file, file.read_text(encoding="utf-8") if layout != "parquet" else "", random)
        return Mutant([place], Refused(WRONG, names), world.taker)

    return mutate


def _without_a_file(file: Path, text: str, random: Random) -> None:
    sorted(file.parent.glob("*.png"))[random.randrange(8)].unlink()


METADATA: dict[str, Mutate] = {
    "names a file that is not there": _metadata(_without_a_file, "which is not in"),
    "damaged": _metadata(
        lambda file, text, random: put(file, random.choice([*NO_FILES.values(), "\0\0", "[" * 99_999])), "metadata"
    ),
    "without file names": _metadata(
        lambda file, text, random: put(file, text.replace("file_name", random.choice(["file", "image", "File name"]))),
        "lacks the column 'file_name'",
        *("csv", "jsonl"),
    ),
    "without prompts": _metadata(
        lambda file, text, random: put(
            file, text.replace("prompt", "words").replace("text", "words").replace("caption", "words")
        ),
        "names no prompts",
        *("csv", "jsonl"),
    ),
    "with names outside": _metadata(
        lambda file, text, random: put(file, text.replace("0003.png", random.choice(["../0003.png", "/etc/hostname"]))),
        "which is outside",
        *("csv", "jsonl"),
    ),
    "cut": _metadata(lambda file, text, random: put(file, text[: text.rindex("}") - 3]), "metadata", "jsonl"),
    "in UTF-16": _metadata(lambda file, text, random: put(file, text.encode("utf-16")), "UTF-8", "csv", "jsonl"),
    "twice": _metadata(
        lambda file, text, random: put(file.with_name("metadata.csv"), "file_name,text\n"), "keep one", "jsonl"
    ),
}


def _nowhere(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    place = random.choice([folder / "none", folder / ("x" * 300), Path(f"{folder}/a/b/c.parquet")])
    return Mutant([place], Refused(WRONG, "there is nothing at"), world.taker)


def _the_same(world: ImageWorld, random: Random, folder: Path) -> Mutant:
    layout = random.choice(["csv", "jsonl", "parquet"])
    places = [lay_out(folder / name, world.pictures, layout, random) for name in ("one", "other")]
    return Mutant(places, Refused(WRONG, "hold the same"), world.taker)


IMAGES = Kind(
    "images",
    ImageWorld,
    {
        **{f"lossless: {kind}": _reencoded(kind) for kind in LOSSLESS},
        "other names": _renamed,
        "nested folders": _nested,
        "another layout": _other_layout,
        **{f"broken: {kind}": _broken(kind) for kind in BROKEN},
        "all broken": _all_broken,
        "another prompt's": _strange_prompt,
        "nobody's": _no_prompt,
        "twice": _twice,
        "no images beside": _no_images,
        "links to nothing": _gone,
        "without what names them": _nothing_names_them,
        **{f"metadata {name}": mutate for name, mutate in METADATA.items()},
        "nowhere": _nowhere,
        "the same twice": _the_same,
    },
    n_commands=15,
)
