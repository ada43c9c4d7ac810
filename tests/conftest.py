"""One thread: the models are tiny, and spinning threads only fight each other."""

import torch

torch.set_num_threads(1)
