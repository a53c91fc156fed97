"""Tell from a file's first bytes, or from its name, whether it is an image, and what it is instead."""

from __future__ import annotations

import os
import re

# So many first bytes tell all kinds below: TAR has its mark at 257.
HEAD_BYTES = 264

# Endings of files that are taken as images without a look at them.
IMAGE_ENDINGS = (
    ".jpg .jpeg .jpe .jfif .jfi .jif .mpo .png .apng .webp .gif .tif .tiff .bmp .dib .avif .avifs .heic .heics .heif "
    ".heifs .hif .jp2 .j2k .j2c .jpf .jpx .ppm .pgm .pbm .pnm .pfm"
)
IMAGE_SUFFIXES = frozenset(IMAGE_ENDINGS.split())

# Videos whose frames can be taken, with a setting that says which.
VIDEO_SUFFIXES = frozenset([".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"])
# The first bytes of their containers, and FFmpeg's names of these.
CONTAINERS = (
    (rb".{4}(ftyp|moov|mdat|wide|free|skip)", "mov"),
    (rb"\x1aE\xdf\xa3", "matroska"),
    (rb"RIFF.{4}AVI ", "avi"),
)

# What else a person may give as images: a kind, its endings, and what to do instead.
OTHER_KINDS = (
    ("an archive", ".zip .tar .tgz .gz .bz2 .xz .zst .7z .rar", "unpack it and give the folder"),
    (
        "a video",
        " ".join(sorted(VIDEO_SUFFIXES)),
        "set EVERY=1s to take a frame of each second",
    ),
    (
        "a video of a kind that is not taken",
        ".mpg .mpeg .mts .m2ts .ts .wmv .flv .3gp",
        "convert it to MP4, such as with 'ffmpeg -i FILE FILE.mp4', and set EVERY=1s",
    ),
    ("a document", ".pdf .ps .eps .ai", "render its pages, such as with 'pdftoppm -jpeg FILE FOLDER/page'"),
    ("an array", ".npy .npz .h5 .hdf5 .mat .pkl .pickle .pt .pth", "save each picture as a PNG or TIFF file"),
    (
        "a camera's raw file",
        ".cr2 .cr3 .nef .arw .dng .raf .rw2 .orf .pef .srw",
        "develop it into a JPEG or TIFF file",
    ),
    ("DICOM", ".dcm .dicom .nii", "convert it into a PNG file, with the window that shows what you look for"),
    ("a drawing", ".svg .psd .xcf .drawio", "export it as a PNG file"),
    ("a spreadsheet", ".xls .xlsx .ods", "save it as CSV (.csv)"),
    ("a format that is not decoded", ".jxl .exr .hdr .ico .icns .dds .tga", "convert it into a PNG or TIFF file"),
)
REMEDIES = {suffix: (kind, remedy) for kind, suffixes, remedy in OTHER_KINDS for suffix in suffixes.split()}

# Files that often lie beside images: they are counted, and not opened.
OTHER_ENDINGS = (
    ".txt .md .rst .csv .tsv .json .geojson .jsonl .ndjson .parquet .pq .arrow .feather .xml .xmp .html .htm .css .js "
    ".yaml .yml .toml .ini .cfg .conf .log .py .ipynb .c .h .cpp .sh .bat .db .sqlite .doc .docx .ppt .pptx .odt .wav "
    ".mp3 .aac .m4a .flac .srt .gpx .kml .aae .thm .lrv .safetensors .onnx .bin .exe .dll .so .class .jar .lock .md5"
)
OTHER_SUFFIXES = frozenset(REMEDIES) | frozenset(OTHER_ENDINGS.split())

# Signatures of images: a pattern of the first bytes, and Pillow's name of the format.
IMAGES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"BM.{4}\0{4}.{4}[\x0c(\x34\x38@l|]\0{3}", "BMP"),
    (rb".{4}ftypavi[fs]", "AVIF"),
    (rb".{4}ftyp(he[iv][cxms]|mif1|msf1)", "HEIF"),
    (rb"\0{3}\x0cjP  |\xff\x4f\xff\x51", "JPEG2000"),
    (rb"P[1-6f]\s+(#.*\n|\d+\s+\d+\s)", "PPM"),
)
# Signatures of other kinds, and an ending in OTHER_KINDS that says what to do; None: no such ending.
OTHERS = (
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive", ".zip"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!", "a compressed archive", ".gz"),
    (rb".{257}ustar", "a TAR archive", ".tar"),
    (rb"%PDF", "a PDF document", ".pdf"),
    (rb"%!PS", "a PostScript document", ".ps"),
    (rb".{4}ftypcrx ", "a camera's raw file", ".cr3"),
    (rb".{4}ftyp|.{4}moov|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba", "a video", ".mp4"),
    (rb"\x93NUMPY|\x89HDF", "an array", ".npy"),
    (rb".{128}DICM", "DICOM", ".dcm"),
    (rb"8BPS|gimp xcf", "a drawing", ".psd"),
    (rb"\xff\x0a|\0{3}\x0cJXL |v/1\x01|#\?RADIANCE|\0\0\x01\0", "a format that is not decoded", ".jxl"),
    (rb"PAR1", "a Parquet file", None),
    (rb"(\xef\xbb\xbf)?\s*(?i:<(!doctype )?html)", "an HTML page", None),
    (rb"(\xef\xbb\xbf)?\s*(?i:<svg|<\?xml)", "XML", ".svg"),
    (rb"version https://git-lfs", "a pointer of Git LFS: run 'git lfs pull'", None),
)
IMAGE_PATTERNS = [(re.compile(pattern, re.DOTALL), name) for pattern, name in IMAGES]
OTHER_PATTERNS = [(re.compile(pattern, re.DOTALL), kind, suffix) for pattern, kind, suffix in OTHERS]


def suffix_of(name: str) -> str:
    """A name's ending, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 100,000 of them


def image_format(head: bytes) -> str | None:
    """Pillow's name of the image format that a file with these first bytes has; None: it is no image."""
    return next((name for pattern, name in IMAGE_PATTERNS if pattern.match(head)), None)


def video_container(head: bytes) -> str | None:
    """FFmpeg's name of the container that a file with these first bytes is; None: of none that is taken."""
    return next((name for pattern, name in CONTAINERS if re.match(pattern, head, re.DOTALL)), None)


def other_kind(head: bytes, name: str = "") -> tuple[str, str | None] | None:
    """The kind of a file that is no image, and what to do with it; by its first bytes, or else by its name."""
    for pattern, kind, suffix in OTHER_PATTERNS:
        if pattern.match(head):
            return kind, REMEDIES[suffix][1] if suffix else None
    return REMEDIES.get(suffix_of(name))
