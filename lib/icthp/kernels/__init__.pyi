from . import ict as ict
from . import ict_triton as ict_triton
from . import resize as resize
from .fold import fold_linear as fold_linear
from .ict import ict_loss as ict_loss
from .ict import select_impl as select_impl
from .ict import sharded_ict_loss as sharded_ict_loss
from .resize import preprocess as preprocess
