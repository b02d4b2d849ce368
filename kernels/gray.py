"""What the gray level of a pixel is, for operations that look at brightness alone.

Gray levels are integers in steps of 1 / `STEPS` of an 8-bit level. Differences, orders and sums of a window
are then exact, and the same on every backend, in any order. 16-bit images keep all their levels.
"""

LUMA = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R BT.601
STEPS = 2048  # 255 * STEPS fits 19 bits, and the sum over the largest window fits 31
WHITE = 255 * STEPS
