"""Where images come from: record files, folders, embedded glyphs, synthetic batches."""
