"""Online associative memory for a frozen language model (delta-mem, arXiv 2605.12357).

::

    memory = memfold_osam.load_adapter(model, "path/to/adapter")
    state = memory.init_state(batch_size=2)
    with memory.bind(state, write=True):
        model(input_ids=conversation)
    with memory.bind(state, write=False):
        model(input_ids=question)      # answers with the conversation steering its attention
"""

from memfold_osam.adapter import load_adapter, save_adapter
from memfold_osam.attach import DeltaMemory
from memfold_osam.config import AdapterConfig
from memfold_osam.state import OsamState

__all__ = ["AdapterConfig", "DeltaMemory", "OsamState", "load_adapter", "save_adapter"]
