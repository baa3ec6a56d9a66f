"""Files and tables: schemas, Parquet, images, and what others wrote."""

__all__ = [
    "column_kinds",
    "export_folder",
    "external_files",
    "external_images",
    "image_folders",
    "images",
    "parquet",
    "pick_a_pic",
    "schemas",
    "set_files",
]
