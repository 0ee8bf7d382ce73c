"""The benchmarks: one file each, and what they share."""

#: The DataModules by the name of their config; as paths, so that none is imported before it is asked for.
DATA_MODULES = {
    "cub200": "cxlp.data.cub200.CUB200",
    "demo": "cxlp.data.demo.Demo",
    "folder": "cxlp.data.folder.Folder",
    "h3d": "cxlp.data.h3d.H3D",
    "mit67": "cxlp.data.mit67.MIT67",
    "voc2007": "cxlp.data.voc2007.VOC2007",
}
