"""Record sets, MXNet's RecordIO: the bytes (recordio), reading (reader) and writing (writer)."""
