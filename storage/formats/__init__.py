"""Files and tables: schemas, Parquet, images, and what others wrote."""

__all__ = [
    "export_folder",
    "external_files",
    "external_images",
    "images",
    "parquet",
    "pick_a_pic",
    "schemas",
    "set_files",
]
