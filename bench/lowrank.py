"""Low-rank methods for one image at a time in plain numpy, step by step as their papers list them.

Tests compare the batched methods of `mclc_gpu.classical` with these functions, benchmarks their speed. Each
takes the gray levels of an image, ndarray [H, W] from 0 to 255, at least as large as a patch, and returns its
target image, ndarray [H, W], float64.
"""

import numpy as np
from scipy import ndimage

Corner = tuple[int, int]


def corners_of(image: np.ndarray, size: int, step: int) -> list[Corner]:
    """Return the first row and column of every patch; patches go down the columns of the grid first."""
    last_row, last_column = image.shape[0] - size, image.shape[1] - size
    rows = [*range(0, last_row, step), last_row]
    columns = [*range(0, last_column, step), last_column]
    return [(row, column) for column in columns for row in rows]


def cut(image: np.ndarray, corners: list[Corner], size: int) -> np.ndarray:
    """Return the patches of an image, [rows, columns, patches]."""
    return np.stack([image[row : row + size, column : column + size] for row, column in corners], axis=2)


def join(patches: np.ndarray, corners: list[Corner], shape: tuple[int, ...], median: bool) -> np.ndarray:
    """Return the mean or the median of all patches at every pixel."""
    size = len(patches)
    copies: list[list[float]] = [[] for _ in range(shape[0] * shape[1])]
    for number, (row, column) in enumerate(corners):
        for y in range(size):
            for x in range(size):
                copies[(row + y) * shape[1] + column + x].append(patches[y, x, number])
    combine = np.median if median else np.mean
    return np.array([combine(values) for values in copies]).reshape(shape)


def gray_range(values: np.ndarray) -> np.ndarray:
    """Scale values from their own range to 0..1."""
    return (values - values.min()) / (values.max() - values.min())


def soft(values: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Shrink values toward 0."""
    return np.sign(values) * np.maximum(np.abs(values) - threshold, 0)


def ipi(image: np.ndarray, weight: float = 1.0, size: int = 50, step: int = 10) -> np.ndarray:
    """Solve the infrared patch-image model (Gao et al. 2013) by accelerated proximal gradient."""
    corners = corners_of(image, size, step)
    data = gray_range(cut(image, corners, size)).reshape(size * size, -1)
    lam = weight / np.sqrt(max(image.shape))
    spectrum = np.linalg.svd(data, compute_uv=False)
    mu, floor = spectrum[1], 0.005 * spectrum[3]
    low = low_before = target = target_before = np.zeros_like(data)
    t = t_before = 1.0
    rank_before = pixels_before = unchanged = 0
    for _ in range(1000):
        y_low = low + (t_before - 1) / t * (low - low_before)
        y_target = target + (t_before - 1) / t * (target - target_before)
        u, s, vh = np.linalg.svd(y_low - (y_low + y_target - data) / 2, full_matrices=False)
        s = np.maximum(s - mu / 2, 0)
        new_low = (u * s) @ vh
        new_target = soft(y_target - (y_low + y_target - data) / 2, lam * mu / 2)
        change = new_low + new_target - y_low - y_target
        step_low, step_target = 2 * (y_low - new_low) + change, 2 * (y_target - new_target) + change
        size_now = np.sqrt(np.sum(new_low**2) + np.sum(new_target**2))
        done = np.sqrt(np.sum(step_low**2) + np.sum(step_target**2)) <= 1e-6 * 2 * max(1, size_now)
        low_before, low, target_before, target = low, new_low, target, new_target
        t_before, t = t, (1 + np.sqrt(1 + 4 * t * t)) / 2
        mu = max(0.9 * mu, floor)
        rank, pixels = int(np.count_nonzero(s)), int(np.count_nonzero(target))
        if rank == rank_before:
            unchanged += 1
            done |= unchanged > 10 and abs(pixels - pixels_before) < 20
        else:
            unchanged, pixels_before = 0, pixels
        rank_before = rank
        if done or rank > 0.3 * min(data.shape):
            break
    joined = join(target.reshape(size, size, -1), corners, image.shape, median=True)
    return joined * (image.max() - image.min())


def nram(image: np.ndarray, weight: float = 1.0, size: int = 50, step: int = 10) -> np.ndarray:
    """Solve the model with a rank surrogate, weighted l1 and l2,1 norms (Zhang et al. 2018) by ADMM."""
    corners = corners_of(image, size, step)
    data = gray_range(cut(image, corners, size)).reshape(size * size, -1)
    short = min(data.shape)
    lam, beta, gamma = weight / np.sqrt(short), 3 / np.sqrt(short), 0.002
    mu = 3 * np.sqrt(max(data.shape))
    target = edge = y = np.zeros_like(data)
    weights = np.ones_like(data)
    sigma = np.zeros(short)
    for _ in range(1000):
        u, s, vh = np.linalg.svd(data - target - edge - y / mu, full_matrices=False)
        for _ in range(100):
            gradient = (1 + gamma) * gamma / (gamma + sigma) ** 2
            sigma_before, sigma = sigma, np.maximum(s - gradient / mu, 0)
            if np.sum((sigma - sigma_before) ** 2) < 1e-6:
                break
        low = (u * sigma) @ vh
        target = soft(data - low - edge - y / mu, lam * weights / mu)
        weights = np.sqrt(short) / 2.5 / (np.abs(target) + 0.04)
        rest = data - low - target - y / mu
        for column in range(rest.shape[1]):
            length = np.linalg.norm(rest[:, column])
            rest[:, column] *= max(length - beta / mu, 0) / length if length > 0 else 0
        edge = rest
        residual = low + target + edge - data
        y = y + mu * residual
        mu = 1.1 * mu
        if np.linalg.norm(residual) < 1e-7 * np.linalg.norm(data):
            break
    joined = join(target.reshape(size, size, -1), corners, image.shape, median=True)
    return joined * (image.max() - image.min())


def gaussian(sigma: float) -> np.ndarray:
    """Return a normalized 3 x 3 Gaussian kernel."""
    y, x = np.mgrid[-1:2, -1:2]
    kernel = np.exp(-(x * x + y * y) / (2 * sigma**2))
    return kernel / kernel.sum()


def structure_tensor(image: np.ndarray, sigma: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the larger and the smaller eigenvalue of the structure tensor at every pixel."""
    smooth = ndimage.correlate(image, gaussian(sigma), mode="reflect")
    down, across = np.gradient(smooth)
    tensor = np.empty((*image.shape, 2, 2))
    for i, one in enumerate((across, down)):
        for j, other in enumerate((across, down)):
            tensor[..., i, j] = ndimage.correlate(one * other, gaussian(rho), mode="reflect")
    values = np.linalg.eigvalsh(tensor)
    return values[..., 1], values[..., 0]


def pstnn(image: np.ndarray, weight: float = 0.6, size: int = 40, step: int = 40) -> np.ndarray:
    """Solve the model with a partial sum of the tensor nuclear norm (Zhang and Peng 2019) by ADMM."""
    corners = corners_of(image, size, step)
    data = cut(image, corners, size)
    larger, smaller = structure_tensor(image, 2, 9)
    total = larger + smaller
    strength = np.divide(larger * smaller, total, out=np.zeros_like(total), where=total > 0)
    prior = cut(gray_range(strength * larger), corners, size)
    spectrum = np.linalg.svd(data.reshape(-1, data.shape[2]), compute_uv=False)
    kept = max(1, int(np.sum(spectrum >= 0.1 * spectrum[0])))
    lam = weight / np.sqrt(max(data.shape[:2]) * data.shape[2])
    mu = 2e-3
    target = y = np.zeros_like(data)
    weights = np.ones_like(data)
    for _ in range(500):
        pixels_before = np.count_nonzero(target)
        slices = np.fft.fft(data - target - y / mu, axis=2)
        for k in range(data.shape[2]):
            u, s, vh = np.linalg.svd(slices[:, :, k])
            s[kept:] = np.maximum(s[kept:] - 1 / mu, 0)
            slices[:, :, k] = (u * s) @ vh
        low = np.fft.ifft(slices, axis=2).real
        target = np.maximum(data - low - y / mu - lam * weights / mu, 0)
        with np.errstate(divide="ignore"):
            weights = kept / (target + 0.01) / prior
        residual = low + target - data
        pixels = np.count_nonzero(target)
        done = np.linalg.norm(residual) < 1e-3 * np.linalg.norm(data)
        if done or (pixels_before and pixels == pixels_before):
            break
        y = y + mu * residual
        mu = min(1.05 * mu, 1e10)
    return join(target, corners, image.shape, median=False)


def ript(
    image: np.ndarray, weight: float = 0.7, h: float = 1.0, size: int = 30, step: int = 10
) -> np.ndarray:
    """Solve the reweighted patch-tensor model (Dai and Wu 2017) by higher-order robust PCA."""
    corners = corners_of(image, size, step)
    data = cut(image, corners, size)
    larger, smaller = structure_tensor(image, 1.2, 2)
    prior = cut(np.exp(h * gray_range(larger - smaller)), corners, size)
    lam, mu = weight / np.sqrt(min(data.shape)), 5 * np.std(data, ddof=1)
    target = np.zeros_like(data)
    lows = [data] * 3
    multipliers = [np.zeros_like(data)] * 3
    weights = prior
    pixels_before = data.size
    for _ in range(500):
        for mode in range(3):
            front = np.moveaxis(data + mu * multipliers[mode] - target, mode, 0)
            u, s, vh = np.linalg.svd(front.reshape(data.shape[mode], -1), full_matrices=False)
            shrunk = (u * np.maximum(s - mu, 0)) @ vh
            lows[mode] = np.moveaxis(shrunk.reshape(front.shape), 0, mode)
        total = sum(low - data - mu * multiplier for low, multiplier in zip(lows, multipliers, strict=True))
        target = np.maximum(-total / 3 - weights * mu * lam / 3, 0)
        weights = prior / (target + 0.01)
        multipliers = [
            multiplier - (low + target - data) / mu for low, multiplier in zip(lows, multipliers, strict=True)
        ]
        mu = mu / 1.5
        pixels = int(np.count_nonzero(target))
        residual = np.linalg.norm(data - sum(lows) / 3 - target)
        if residual < 1e-7 * np.linalg.norm(data) or pixels == pixels_before:
            break
        pixels_before = pixels
    return join(target, corners, image.shape, median=False)


def slices_of(tensor: np.ndarray) -> np.ndarray:
    """Return the Fourier slices of a tensor [a, b, c], [c, a, b]."""
    return np.moveaxis(np.fft.fft(tensor, axis=2), 2, 0)


def tensor_of(slices: np.ndarray) -> np.ndarray:
    """Return the tensor [a, b, c] of Fourier slices [c, a, b]."""
    return np.fft.ifft(np.moveaxis(slices, 0, 2), axis=2).real


def dictionary(data: np.ndarray) -> np.ndarray:
    """Learn the dictionary of a tensor: U * S of the t-SVD of its low-rank part, as Fourier slices."""
    rows, number, columns = data.shape
    lam, mu = 1 / np.sqrt(max(rows, columns) * number), 1e-4
    low = sparse = y = np.zeros_like(data)
    for _ in range(800):
        shrunk = []
        for one in slices_of(data - sparse - y / mu):
            u, s, vh = np.linalg.svd(one, full_matrices=False)
            shrunk.append((u * np.maximum(s - 1 / mu, 0)) @ vh)
        low_before, low = low, tensor_of(np.array(shrunk))
        sparse_before, sparse = sparse, soft(data - low - y / mu, lam / mu)
        residual = low + sparse - data
        if max(np.abs(x).max() for x in (low - low_before, sparse - sparse_before, residual)) < 1e-8:
            break
        y = y + mu * residual
        mu = min(1.2 * mu, 1e10)
    atoms = []
    for one in slices_of(low):
        u, s, _ = np.linalg.svd(one, full_matrices=False)
        rank = np.count_nonzero(s > max(one.shape) * np.finfo(float).eps * s[0])
        kept = rank
        drops = s[: max(rank - 2, 0)] / s[1 : max(rank - 1, 1)]
        if len(drops):
            steep = np.flatnonzero(drops > 50)
            kept = steep[0] + 1 if len(steep) else rank
            highest = drops.max()
            if (rank - 2) * highest > 20 * (drops.sum() - highest):
                kept = min(kept, drops.argmax() + 1)
        atoms.append(u * np.where(np.arange(len(s)) < kept, s, 0))
    return np.array(atoms)


def shrink_by_power(s: np.ndarray, factor: float, p: float) -> np.ndarray:
    """Shrink singular values for the weighted Schatten p-norm by generalized soft thresholding."""
    result = s
    for _ in range(3):
        weights = factor / (result ** (1 / p) + np.finfo(float).eps)
        result = np.zeros_like(s)
        for i, (value, weight) in enumerate(zip(s, weights, strict=True)):
            bent = 2 * weight * (1 - p)
            if value > bent ** (1 / (2 - p)) + p * weight * bent ** ((p - 1) / (2 - p)):
                x = value
                for _ in range(2):
                    x = value - p * weight * x ** (p - 1)
                result[i] = x
    return result


def mslstipt(frames: np.ndarray, rank_weight: float = 1e-4, p: float = 0.8, size: int = 100) -> np.ndarray:
    """Solve the multi-subspace spatial-temporal patch-tensor model (Sun et al. 2020) for frames [L, H, W]."""
    corners = corners_of(frames[0], size, size)
    patches = np.concatenate([cut(frame / 255, corners, size) for frame in frames], axis=2)
    data = np.moveaxis(patches, 2, 1)
    atoms = dictionary(data)
    rows, number, columns = data.shape
    lam, beta = 1 / np.sqrt(columns * max(rows, number)), 1e-4
    conjugate = atoms.conj().transpose(0, 2, 1)
    inverse = np.linalg.inv(conjugate @ atoms + np.eye(atoms.shape[2]))
    z = j = y1 = np.zeros((atoms.shape[2], number, columns))
    target = y2 = np.zeros_like(data)
    for _ in range(200):
        shrunk = []
        for one in slices_of(j - y1 / beta):
            u, s, vh = np.linalg.svd(one, full_matrices=False)
            shrunk.append((u * shrink_by_power(s, rank_weight * size / beta, p)) @ vh)
        z_before, z = z, tensor_of(np.array(shrunk))
        fit = tensor_of(atoms @ slices_of(j))
        target_before, target = target, soft(data - fit + y2 / beta, lam / beta)
        against = conjugate @ slices_of(data - target + y2 / beta)
        j_before, j = j, tensor_of(inverse @ (slices_of(z + y1 / beta) + against))
        gap, residual = z - j, data - tensor_of(atoms @ slices_of(j)) - target
        changes = (gap, residual, j - j_before, target - target_before, z - z_before)
        if max(np.abs(x).max() for x in changes) < 1e-4:
            break
        y1, y2 = y1 + beta * gap, y2 + beta * residual
        beta = min(1.1 * beta, 1e8)
    targets = np.moveaxis(target, 1, 2)
    one = len(corners)
    return 255 * np.array(
        [
            join(targets[:, :, i * one : (i + 1) * one], corners, frames.shape[1:], median=False)
            for i in range(len(frames))
        ]
    )
