"""What networks can be built: layouts, depths and kinds of norms. Needs no torch, so that command lines can read it."""

from __future__ import annotations

from typing import Literal, NamedTuple

LayoutName = Literal["nonlocal", "slowfast", "mmaction"]
Depth = Literal[50, 101, 152]
NonlocalName = Literal["softmax", "dot_product", "softmax_4_frames"]
Size3 = tuple[int, int, int]

# Where the cells of a network's last map lie in a clip: frames, rows and columns from one cell to the next, and the
# middle of the first cell, counted from the first frame and pixel.
LastMap = tuple[Size3, tuple[float, float, float]]


class Layout(NamedTuple):  # not a dataclass: importing those costs a sixth of a help's time
    """What the sources do differently: the stem's strides, its pool, and the head's window. All triples are T, H, W.

    Args:
        conv1_stride: Stride of the 5x7x7 convolution, which is padded by 2, 3, 3.
        pool1_kernel: Kernel of the max pool after it.
        pool1_stride: Stride of that pool.
        pool1_padding: Padding of that pool.
        head_window_px: Side of the window that the head averages over, moved by one position at a time, or the whole
            map if that is smaller; None always takes the whole map. In time it spans all of T.
        min_frames: Frames of the shortest clip. It is the product of the strides in time: a shorter clip would leave
            less than one frame's worth on the last map, or none.
        min_px: Smallest height and width; below it a pool's window does not fit.
        nonlocal_min_px: The same with non-local blocks, which pool the maps of res4.
    """

    conv1_stride: Size3
    pool1_kernel: Size3
    pool1_stride: Size3
    pool1_padding: Size3
    head_window_px: int | None
    min_frames: int
    min_px: int
    nonlocal_min_px: int

    def last_map(self) -> LastMap:
        """Where the cells of the last map lie in a clip.

        A cell's middle is that of the pixels that it is computed from, counted from the first one's: for a layer of
        kernel k, stride s and padding p it lies (k - 1) / 2 - p after pixel s i of its input. That is not 0 in the
        stem's pool, nor in the pool of two frames after res2.
        """
        stem = [conv * pool for conv, pool in zip(self.conv1_stride, self.pool1_stride, strict=True)]
        pools = zip(self.conv1_stride, self.pool1_kernel, self.pool1_padding, strict=True)
        frame, row, column = (stride * ((kernel - 1) / 2 - padding) for stride, kernel, padding in pools)
        return (2 * stem[0], 8 * stem[1], 8 * stem[2]), (frame + stem[0] / 2, row, column)


# Maps of a 32-frame clip (slowfast: 8 frames) of 224 px: after conv1, pool1, res3, res4, res5
#   nonlocal   T 16, 8, 4, 4, 4   H, W 112, 55, 28, 14, 7
#   slowfast   T  8, 8, 4, 4, 4   H, W 112, 56, 28, 14, 7
#   mmaction   T 16, 8, 4, 4, 4   H, W 112, 56, 28, 14, 7
LAYOUTS: dict[str, Layout] = {
    # Source: facebookresearch/video-nonlocal-net, resnet_video_org (its paper prints other pools; the author
    # says in the repository's issue 23 that the results come from the code's).
    "nonlocal": Layout((2, 2, 2), (2, 3, 3), (2, 2, 2), (0, 0, 0), 7, min_frames=8, min_px=5, nonlocal_min_px=21),
    # Source: facebookresearch/SlowFast I3D_8x8_R50, pytorchvideo i3d_r50.
    "slowfast": Layout((1, 2, 2), (1, 3, 3), (1, 2, 2), (0, 1, 1), 7, min_frames=2, min_px=1, nonlocal_min_px=17),
    # Source: open-mmlab/mmaction2 i3d_r50 (ResNet3d with conv1_stride_t=2, pool1_stride_t=2).
    "mmaction": Layout((2, 2, 2), (1, 3, 3), (2, 2, 2), (0, 1, 1), None, min_frames=8, min_px=1, nonlocal_min_px=17),
}

# Frames of a map of res3 that a non-local block of weighting "softmax_4_frames" looks at together. Source:
# video-nonlocal-net's group_size in resnet_video.py and resnet_video_org.py, for networks with USE_AFFINE.
NONLOCAL_FRAMES = 4

# Blocks of res2, res3, res4, res5. Source: He et al. 2016 (arXiv:1512.03385), Table 1.
DEPTHS: dict[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Residual blocks of res3 and of res4 that a non-local block follows. Source: video-nonlocal-net's resnet_video_org.py
# (LAYER_MOD), SlowFast's NONLOCAL.LOCATION and mmaction2's non_local; none has them for 152 layers.
NONLOCAL_AFTER: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    50: ((1, 3), (1, 3, 5)),
    101: ((1, 3), (6, 13, 20)),
}

NormName = Literal["batch", "group", "layer", "instance", "sync_batch", "frozen_batch", "batch_renorm", "none"]

# Kinds that hold `running_mean`, `running_var` and `num_batches_tracked`; the weights of one fit any other.
BATCH_FAMILY: tuple[NormName, ...] = ("batch", "sync_batch", "frozen_batch", "batch_renorm")

# Source: Wu & He 2018 (arXiv:1803.08494), section 4.1.
DEFAULT_NUM_GROUPS = 32

# Networks of pytorchvideo, under its hub's names; `I3D` is the network of checkpoints that name none.
HUB_NETWORKS = ("x3d_s", "r2plus1d_r50", "slow_r50")
I3D_NETWORK = "i3d"
# What a checkpoint says of a network that is not the package's.
OWN_NETWORK = "own"
