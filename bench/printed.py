"""Numbers that Li et al. (ICCV 2023, pp. 1009-1019) print, and lists of NUAA-SIRST.

The table of detectors is that of the figure which its authors keep beside their code
(github.com/YeRen123455/SIRST-Single-Point-Supervision, commit 615b5d1, Figs/Quantitative Results.png).
Numbers of the paper that are not here are not known to this package, and stay blank.
"""

from typing import NamedTuple

SETS = ("NUAA-SIRST", "IRSTD-1k", "NUDT-SIRST", "NUDT-SIRST-sea")


class Printed(NamedTuple):
    """Scores of a detector as printed: IoU and Pd in percent, Fa in false pixels per million."""

    iou: float
    pd: float
    fa: float


# IoU of the labels of the train images, 0..1, by the labels' name and data set.
LABEL_IOU: dict[str, dict[str, float]] = {
    "point": {"NUAA-SIRST": 0.0253},
    "lca": {"NUAA-SIRST": 0.518},
    "mc": {"NUAA-SIRST": 0.704},
    "mclc": {"NUAA-SIRST": 0.763, "NUDT-SIRST": 0.602},
}

# IoU, Pd and Fa on the test images of each of `SETS`; a detector is named by network and labels.
_DETECTORS = """
tophat           7.143 79.84 1012   6.222 55.48 595.6   20.72 78.41 166.7   1.17  2.680 95.37
wslcm            1.158 77.95 5446   0.019 55.79 31547   2.283 56.82 1309    0.60  10.52 7.330
mslstipt         10.30 82.13 1131   10.37 57.05 3707    8.342 47.40 888.1   0.33  0.350 6283
nram             12.16 74.52 13.85  4.221 49.21 27.86   6.927 56.40 19.27   0.35  17.31 3.585
pstnn            22.40 77.95 29.11  9.871 51.72 99.75   14.85 66.13 44.17   1.50  13.51 15.44
acm-full         70.33 93.91 3.728  60.97 90.58 21.78   67.08 95.97 10.18   47.57 70.46 21.31
acm-kmeans       46.16 88.59 27.45  33.41 54.42 41.82   41.18 77.88 34.86   38.15 42.45 23.25
acm-superpixel   53.84 90.49 56.18  49.69 84.69 42.36   51.76 92.33 34.60   40.42 36.70 16.92
acm-grabcut      57.63 90.87 60.46  54.03 81.97 23.99   55.24 91.65 6.457   38.76 52.37 15.54
acm-mclc         67.08 92.01 19.80  56.53 82.31 25.05   57.74 92.38 16.77   43.69 55.69 9.820
resunet-full     75.93 97.71 15.68  66.34 92.83 8.198   83.74 98.09 4.820   46.05 60.18 7.920
resunet-kmeans   22.34 39.92 156.5  33.86 80.95 10.32   42.65 89.20 42.51   31.11 51.74 44.63
resunet-superpixel 60.02 93.15 23.45 59.28 88.43 24.36  62.65 93.40 26.95   36.43 56.50 30.61
resunet-grabcut  61.38 95.43 25.16  61.67 90.13 13.96   63.01 94.03 13.44   37.04 56.19 17.32
resunet-mclc     71.58 94.67 15.21  64.59 90.81 6.223   68.04 93.86 25.35   39.06 59.44 6.979
dnanet-full      76.24 97.71 12.80  68.44 94.77 8.806   86.36 97.39 6.897   42.17 61.60 17.19
dnanet-kmeans    45.69 90.49 58.11  32.98 81.63 25.18   42.84 88.04 56.99   20.59 32.67 21.59
dnanet-superpixel 62.59 93.53 14.54 58.44 89.45 27.70   64.68 95.44 33.39   38.42 36.70 6.921
dnanet-grabcut   61.14 97.71 20.53  61.00 91.15 20.87   64.00 97.03 40.65   28.08 49.79 4.816
dnanet-mclc      72.86 96.95 14.43  62.23 92.13 24.14   70.52 95.55 33.20   40.23 58.32 11.29
isnet-full       80.01 99.23 4.96   68.72 95.68 15.43   82.57 96.49 44.11   41.27 58.89 13.26
isnet-kmeans     38.27 74.88 112.7  29.67 69.52 38.43   44.57 89.87 66.20   32.57 44.20 35.26
isnet-superpixel 65.82 93.73 28.26  57.93 90.75 41.74   61.59 95.61 29.59   35.21 48.56 15.32
isnet-grabcut    63.72 96.27 26.32  62.29 91.37 19.34   65.53 94.89 45.31   33.68 48.24 23.56
isnet-mclc       75.93 95.44 11.04  63.19 92.58 22.23   66.87 96.22 48.59   38.29 52.27 19.97
uiunet-full      76.83 97.64 12.31  65.27 92.76 12.40   75.35 93.33 27.69   41.88 55.69 11.56
uiunet-kmeans    35.17 90.90 46.53  21.26 82.52 19.43   38.27 88.27 78.09   29.33 33.17 14.22
uiunet-superpixel 64.23 92.11 49.34 54.42 87.30 29.82   51.68 91.32 39.40   37.83 47.22 20.09
uiunet-grabcut   63.29 93.86 33.27  60.37 89.27 14.24   64.33 92.57 33.59   37.03 51.55 26.12
uiunet-mclc      74.22 96.20 16.19  64.13 90.74 14.93   69.35 91.11 38.21   39.27 53.23 23.14
"""


def _read(text: str) -> dict[str, dict[str, Printed]]:
    table = {}
    for name, *cells in map(str.split, text.strip().splitlines()):
        values = list(map(float, cells))
        table[name] = {one: Printed(*values[3 * place : 3 * place + 3]) for place, one in enumerate(SETS)}
    return table


DETECTORS = _read(_DETECTORS)

# The two splits of NUAA-SIRST that papers use, both under its name, by number of train and test images. The
# 213 and 214 are the lists of most releases; Li et al. use them. The others are trainval.txt and test.txt of
# the first release (github.com/YimianDai/sirst, idx_427): these are its test images, Misc_N.
NUAA_SPLITS = ("213/214", "341/86")
_NUAA_86 = """
6 8 15 23 25 29 34 43 47 54 58 66 70 72 79 91 92 95 96 110 111 116
120 124 127 129 138 139 145 153 154 156 158 160 171 172 174 175 176 179 192 194 203 205
209 214 220 229 235 238 240 243 248 250 258 263 264 270 274 276 277 295 303 306 311 316
317 323 331 343 345 346 347 349 356 357 374 382 386 387 394 395 396 413 419 423
"""
NUAA_86 = tuple(map(int, _NUAA_86.split()))
