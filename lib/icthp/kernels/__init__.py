"""The paper's expensive parts, exact and fast: each has a slow twin that tests compare it with."""

from icthp.kernels.fold import fold_normalisation as fold_normalisation
from icthp.kernels.fold import hp_head as hp_head
from icthp.kernels.ict import choose as choose
from icthp.kernels.ict import ict_loss as ict_loss
from icthp.kernels.ict import sharded_ict_loss as sharded_ict_loss
from icthp.kernels.resize import preprocess as preprocess
