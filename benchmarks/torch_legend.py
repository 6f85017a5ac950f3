"""What the tables of `benchmarks/torch_folders.py` mean, in words."""

from __future__ import annotations

LEGEND = """\
Made by `python -m benchmarks.torch_folders --markdown benchmarks/TORCH.md`. A cell is `BatchNorms left (error in
float64; accuracy in float32)`. The first figure is the largest error of any output channel of its scale, where the
tool folds the network in float64; at most 1e-10 is right. The second is the largest error of any channel of the
float32 network against float64, as a multiple of the original's own error there (16 roundings are added to it); at
most 4 is right: `error(folded) <= 4 * error(original) + 64u`, u = 2^-24 of the channel's scale. "Right in float64"
and "in float32" count the tools that made something of the network. WRONG: an error above 1e-3 of an output's scale.
INEXACT: above 1e-10 in float64. INACCURATE: above 4. ERROR: the tool raised. CRASH: its process died. TIMEOUT: it did
not end in time. UNPROVEN: the network is dead or chaotic (its "net" is not "alive"), no figure at its outputs proves
anything. What was said is listed below the table.

BatchNorms left are those that one run of the result goes through: the batch_norm operators that are called, for
TorchScript those in the frozen graph, and for inductor, which takes a BatchNorm apart, those of which the frozen graph
has arithmetic left. "bnfold" gives the module's own class back, which can hold less than a graph: branches are not
merged. "bnfold as_graph" makes a torch.fx.GraphModule of it. torch.fx knows torch's own classes and no subclass, such
as timm's BatchNormAct2d. "own fuse" is timm's `reparameterize_model` or ultralytics' `fuse()`, written for their own
classes; "-" where there is none. jit.freeze works on the traced module. Of inductor, the frozen graph is run by
torch's own kernels, without oneDNN's packed weights, and no code is generated. "?": the tool failed in float64.

Original and result are compared on 64 images; the class scores of the YOLOs are lifted (see the end)."""

LUCK = """\
A fold rounds its weights anew, and the second figure is a ratio of two largest roundings: in one of many channels the
original may err by little. An earlier table, on 16 images and without the lift, had two networks above 4:

* YOLOv8n, 4.7 to 6.3 with every tool. An untrained YOLO gives class scores of about sigmoid(-10), so that the scale and
  the error of a channel are those of one number: of 1344 in a channel one held up to 99.9 % of the sum of the squared
  errors. In the worst channel the net folded by its own fuse() erred 6.0 times as much as the original, in another one
  the original 7.7 times as much as that; on 160 other images it was 4.1 and 2.5. The folded weights, rounded once and
  run in float64, erred 0.3 times as much as the original: the rest is the order of sums. More images do not help. Here
  the biases of the class scores, which have no BatchNorm, are lifted by 10 in all three YOLOs: the scores lie between 0
  and 1 as those of a trained one do on objects, and hundreds of numbers are near a channel's scale.
* LeViT, 4.1 with bnfold, which folds 52 BatchNorms (timm's own 3.5, others 2.1 to 3.4 for 4). A channel of a
  classifier's output is one number an image. On 48 other images the worst was 2.6 (timm's 2.3). What is no luck: over
  all numbers the root mean square of the error is 1.6 times the original's (timm's 1.5), of which 1.4 is there in
  float64 too: the one rounding of each folded weight."""

LEGEND_SMALL = """\
Each in float64, compared on other numbers and at other sizes than the tool was told. A cell is the number of BatchNorms
left where the result is right, WRONG and the error of the output's scale, ERROR where the tool raised, BROKEN where
what it made cannot be run. `fuse_modules` of torch.ao and `torch.nn.utils.fusion` are told the pair by the caller, who
has to know better: what they get wrong is what a caller has to look after. "bnfold as_graph" is BROKEN where the graph
refuses an input of another size than its own: the module's code had made that size a number."""
