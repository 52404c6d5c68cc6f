"""The training data: which samples come when, and from which position a resumed run continues.

`SampledBatches` is for our own loader, `ForeignBatches` for any other; the loop uses both alike:

    load_state_dict(state)      once at most, before `begin`
    resumed                     whether `begin` will enter its epoch in the middle
    begin(epoch)                the updates of the epoch, or the rest of them
    fetch(), use(update)        each micro-batch of an update; then count the update
    state_dict()                the position after the last update that was counted; plain values and tensors

A state's "epoch" is the one to begin next: at the end of an epoch the one after it, which then is not `resumed`. So the
code that resumes sets the count of epochs to `state["epoch"] - 1`, because the loop adds one before it calls `begin`.
If the end of an epoch cannot be known without another fetch, as for loaders without a length, the epoch counts as
unfinished. The resumed run may then find that it has no updates left, which is no error.
"""

from trainrun.worker.data.collating import Collate as Collate
from trainrun.worker.data.collating import bind_collate as bind_collate
from trainrun.worker.data.counting import EVALUATION_WEIGHT as EVALUATION_WEIGHT
from trainrun.worker.data.counting import TRAINING_WEIGHT as TRAINING_WEIGHT
from trainrun.worker.data.counting import SampleCounter as SampleCounter
from trainrun.worker.data.counting import batch_size as batch_size
from trainrun.worker.data.draws import Reseeded as Reseeded
from trainrun.worker.data.evaluation import evaluation_batches as evaluation_batches
from trainrun.worker.data.fingerprint import compare as compare
from trainrun.worker.data.fingerprint import fingerprint as fingerprint
from trainrun.worker.data.foreign import ForeignBatches as ForeignBatches
from trainrun.worker.data.giving import Giver as Giver
from trainrun.worker.data.items import Items as Items
from trainrun.worker.data.items import Plan as Plan
from trainrun.worker.data.items import Share as Share
from trainrun.worker.data.naming import resumable as resumable
from trainrun.worker.data.processes import prepare_processes as prepare_processes
from trainrun.worker.data.sampled import SampledBatches as SampledBatches
from trainrun.worker.data.sampled import SampledLoader as SampledLoader
from trainrun.worker.data.samplers import EvaluationSampler as EvaluationSampler
from trainrun.worker.data.samplers import TrainSampler as TrainSampler
from trainrun.worker.data.sizes import BatchSizes as BatchSizes
from trainrun.worker.data.update import Update as Update
