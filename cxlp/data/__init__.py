"""The benchmarks: one file each, and what they share."""

#: The DataModules by the name of their config; as paths, so that none is imported before it is asked for.
DATA_MODULES = {
    "cub200": "cxlp.data.cub200.CUB200",
    "demo": "cxlp.data.demo.Demo",
    "folder": "cxlp.data.folder.Folder",
}
