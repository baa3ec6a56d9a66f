"""The images of a study: sized for the screen, under ids that tell nothing."""

from collections.abc import Collection, Iterable, Iterator

from popalign_core.ids import content_id
from storage.store import ArtifactRef, Store


def picture_id(study: str, image_id: str, *, spoiled: bool = False) -> str:
    """What a page knows of an image."""
    return content_id("picture", study, image_id, spoiled)


def iter_study_images(
    store: Store,
    study: str,
    samples: Iterable[ArtifactRef],
    image_ids: Collection[str],
    max_side: int,
    spoiled_ids: Collection[str] = (),
) -> Iterator[tuple[str, bytes]]:
    """Id and bytes of every image that a study shows, read a shard at a time.

    Args:
        store: Has the images.
        study: Its name.
        samples: Where the images are; two systems may share one.
        image_ids: Shown as they are.
        max_side: Longest side as shown, px.
        spoiled_ids: Shown blurred, for checks.
    """
    from popalign_core.review.screen_images import encode_for_screen, spoil
    from storage.formats.images import decode_png

    plain, spoiled = set(image_ids), set(spoiled_ids)
    for sample in dict.fromkeys(samples):
        for shard in store.iter_table(sample, "images", ["image_id", "image"]):
            for image_id, cell in shard[shard["image_id"].isin(plain | spoiled)].itertuples(index=False):
                pixels_u8 = decode_png(cell["bytes"])
                if image_id in plain:
                    yield picture_id(study, image_id), encode_for_screen(pixels_u8, max_side)
                if image_id in spoiled:
                    yield picture_id(study, image_id, spoiled=True), encode_for_screen(spoil(pixels_u8), max_side)
                plain.discard(image_id)
                spoiled.discard(image_id)
