"""Our figures beside those of fastai, of torchvision under a hand-written loop, and of bare PyTorch

Same network, batch size, images and metric, taken in turns in one run. `cinic bench NAME` runs them from a checkout;
they are not part of the installed package. Importing this package loads nothing, so that a process whose memory is
measured holds only what it uses; `benchmarks.catalog` has the list.
"""
