"""Files and tables: schemas, Parquet, images, and what others wrote."""
