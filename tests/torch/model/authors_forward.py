"""An independent forward pass straight from the paper's table, on a state dict under the authors' names.

Functional and without any of the package's code, so that a slip in the network or in the key map shows as a difference.
"""

import torch
from torch.nn import functional as F


def authors_forward(state, image):
    """The eight logit maps: refined, decoder 1..6, bridge."""

    def conv(name, x, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        padding = dilation if weight.shape[-1] == 3 else 0
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, dilation)

    def norm(name, x):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training=False)

    def unit(conv_name, norm_name, x, dilation=1):
        return F.relu(norm(norm_name, conv(conv_name, x, dilation=dilation)))

    def block(name, x, stride=1):
        y = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)))
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
        if f"{name}.downsample.0.weight" in state:
            x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
        return F.relu(y + x)

    def up(x, scale):
        height, width = x.shape[-2] * scale, x.shape[-1] * scale
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)

    def pool(x):
        return F.max_pool2d(x, 2, 2, ceil_mode=True)

    x = unit("inconv", "inbn", image)
    skips = []
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for i in range(blocks):
            x = block(f"encoder{stage}.{i}", x, stride=2 if stage > 1 and i == 0 else 1)
        skips.append(x)
    for stage in (5, 6):
        x = pool(x)
        for i in (1, 2, 3):
            x = block(f"resb{stage}_{i}", x)
        skips.append(x)
    bridge = x
    for part in "1m2":
        bridge = unit(f"convbg_{part}", f"bnbg_{part}", bridge, dilation=2)
    decoded, x = {}, bridge
    for stage in (6, 5, 4, 3, 2, 1):
        x = torch.cat((x if stage == 6 else up(x, 2), skips[stage - 1]), 1)
        for part in "1m2":
            x = unit(f"conv{stage}d_{part}", f"bn{stage}d_{part}", x, 2 if stage == 6 and part != "1" else 1)
        decoded[stage] = x
    side = [up(conv(f"outconv{s}", decoded[s]), 2 ** (s - 1)) for s in range(1, 7)]
    side_bridge = up(conv("outconvb", bridge), 32)
    y, kept = conv("refunet.conv0", side[0]), []
    for i in (1, 2, 3, 4):
        kept.append(unit(f"refunet.conv{i}", f"refunet.bn{i}", y))
        y = pool(kept[-1])
    y = unit("refunet.conv5", "refunet.bn5", y)
    for i in (4, 3, 2, 1):
        y = unit(f"refunet.conv_d{i}", f"refunet.bn_d{i}", torch.cat((up(y, 2), kept[i - 1]), 1))
    return [side[0] + conv("refunet.conv_d0", y), *side, side_bridge]
