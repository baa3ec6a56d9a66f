"""Images made elsewhere in the model's size."""

import io

import numpy as np
from PIL import Image

from popalign_core.models.pixels import decode_image, fit_image


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind, **options)
    return sink.getvalue()


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    assert np.array_equal(fit_image(encoded(pixels), 16, 24), pixels)


def test_the_shorter_side_fits_and_the_middle_stays() -> None:
    """Three stripes, each as wide as the picture is high: only the middle one is seen."""
    stripes = np.repeat(np.array([[[10] * 3, [120] * 3, [250] * 3]], np.uint8), 32, axis=0).repeat(32, axis=1)
    for pixels in (stripes, stripes.transpose(1, 0, 2)):
        fitted = fit_image(encoded(pixels), 16, 16)
        assert fitted is not None
        assert fitted.shape == (16, 16, 3)
        assert int(np.abs(fitted.astype(int) - 120).max()) < 10  # the filter sees a little of the neighbours
        assert np.array_equal(fitted[4:12, 4:12], np.full((8, 8, 3), 120))


def test_small_grey_and_turned_pictures_become_rgb_in_the_configured_size() -> None:
    grey = np.full((5, 7), 99, np.uint8)
    assert np.array_equal(fit_image(encoded(grey), 64, 32), np.full((32, 64, 3), 99, np.uint8))
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:8] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = fit_image(encoded(halves, exif=exif), 16, 16)
    assert np.array_equal(turned, halves[::-1])


def test_what_is_no_picture_is_none() -> None:
    good = encoded(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8), "JPEG")
    assert fit_image(b"not a picture", 16, 16) is None
    assert fit_image(good[: len(good) // 2], 16, 16) is None
    assert fit_image(b"", 16, 16) is None


def test_damaged_pictures_never_stop_the_import() -> None:
    """A few hundred files with some bytes overwritten: each is read or is None."""
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (24, 24, 3), np.uint8)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        good = encoded(pixels, kind)
        for _ in range(60):
            bad = bytearray(good)
            for place in generator.integers(0, len(bad), 5):
                bad[place] = int(generator.integers(256))
            outcomes.add(fit_image(bytes(bad), 16, 16) is None)
    assert outcomes == {True, False}


def test_any_sort_of_picture_becomes_8_bit_rgb() -> None:
    colour = np.full((12, 10, 3), (200, 100, 50), np.uint8)
    for mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LA", "1"):
        kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
        sink = io.BytesIO()
        Image.fromarray(colour).convert(mode).save(sink, format=kind)
        pixels, reason = decode_image(sink.getvalue())
        assert reason is None
        assert (pixels.shape, pixels.dtype) == ((12, 10, 3), np.uint8)
        if mode not in ("P", "LA", "1"):  # these lose colours
            assert int(np.abs(pixels.astype(int) - colour).max()) <= 3, mode
    jpeg = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(jpeg, format="JPEG", quality=95)
    assert int(np.abs(decode_image(jpeg.getvalue())[0].astype(int) - colour).max()) <= 8


def test_16_bits_become_8_and_not_white() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels, _ = decode_image(encoded(ramp))
    assert np.array_equal(pixels[:, :, 0].ravel(), np.arange(256))
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_of_an_animation_the_first_picture_counts() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "WEBP", "PNG"):
        sink = io.BytesIO()
        frames[0].save(sink, format=kind, save_all=True, append_images=frames[1:], lossless=True)
        pixels, reason = decode_image(sink.getvalue())
        assert reason is None
        assert int(np.abs(pixels.astype(int) - 10).max()) <= 2, kind


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """20,000 x 20,000 px in 0.2 MB; decoded it would be 1.2 GB."""
    for side in (20_000, 10_000):  # beyond PIL's error, and beyond its warning
        sink = io.BytesIO()
        Image.new("1", (side, side)).save(sink, format="PNG")
        assert len(sink.getvalue()) < 1_000_000
        assert decode_image(sink.getvalue()) == (None, "too large image")


def test_a_sideways_picture_is_turned() -> None:
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    pixels, _ = decode_image(encoded(halves, exif=exif))
    assert np.array_equal(pixels, np.rot90(halves, -1))


def test_reasons_of_what_cannot_be_read() -> None:
    good = encoded(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8), "JPEG")
    for data in (b"", b"not a picture", good[: len(good) // 2], b"\x89PNG\r\n\x1a\n"):
        assert decode_image(data) == (None, "undecodable image")


def test_what_is_transparent_is_seen_before_white() -> None:
    """As screens show it; what colour lies below is anything, mostly black."""
    colour = np.zeros((4, 4, 4), np.uint8)
    colour[:2] = (200, 100, 50, 255)
    expected = np.full((4, 4, 3), 255, np.uint8)
    expected[:2] = (200, 100, 50)
    image = Image.fromarray(colour)
    palette = image.convert("RGB").quantize(4)
    below = palette.getpixel((0, 3))
    for picture, kind, options in (
        (image, "PNG", {}),
        (image, "WEBP", {"lossless": True}),
        (image, "TIFF", {}),
        (palette, "PNG", {"transparency": below}),
        (palette, "GIF", {"transparency": below}),
        (image.convert("RGB"), "PNG", {"transparency": (0, 0, 0)}),
        (image.convert("LA"), "PNG", {}),
    ):
        sink = io.BytesIO()
        picture.save(sink, kind, **options)
        pixels, reason = decode_image(sink.getvalue())
        assert reason is None
        assert np.array_equal(pixels[2:], expected[2:]), (picture.mode, kind)
        if picture.mode != "LA":
            assert np.array_equal(pixels, expected), (picture.mode, kind)


def test_floats_from_0_to_1_are_not_black() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels, _ = decode_image(encoded(ramp, "TIFF"))
    assert np.array_equal(pixels[:, :, 0].ravel(), np.arange(256))
    pixels, _ = decode_image(encoded(ramp * 255, "TIFF"))
    assert int(np.abs(pixels[:, :, 0].ravel().astype(int) - np.arange(256)).max()) <= 1


def test_no_error_of_a_format_gets_out() -> None:
    """Damaged AVIF, ICO, TGA, TIFF and others raise what no list of exceptions foresees."""
    generator, pixels = np.random.default_rng(3), np.zeros((16, 16, 3), np.uint8)
    for kind in ("AVIF", "ICO", "TGA", "TIFF", "JPEG2000", "PPM", "DDS", "PCX", "SGI", "ICNS", "QOI"):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, kind)
        for _ in range(60):
            bad = bytearray(sink.getvalue())
            for place in generator.integers(0, min(len(bad), 200), 4):
                bad[place] = int(generator.integers(256))
            found, reason = decode_image(bytes(bad))
            assert (found is None) == (reason is not None)
