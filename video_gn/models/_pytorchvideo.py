"""pytorchvideo's builders and blocks, imported without a warning that concerns nothing here."""

import warnings

with warnings.catch_warnings():
    # fvcore, which pytorchvideo imports, compiles a loss with torch.jit.script that nothing here uses.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=Warning)
    from pytorchvideo.models.net import Net
    from pytorchvideo.models.resnet import BottleneckBlock, ResStage, create_bottleneck_block, create_res_stage
    from pytorchvideo.models.stem import create_res_basic_stem

__all__ = [
    "BottleneckBlock",
    "Net",
    "ResStage",
    "create_bottleneck_block",
    "create_res_basic_stem",
    "create_res_stage",
]
