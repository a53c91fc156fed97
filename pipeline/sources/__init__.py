"""Find and read images: files, folders, lists, tables and objects in a bucket."""
