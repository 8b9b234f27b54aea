"""The verbs of the command line: each declares its options, and a function that they go to.

They import what they call when they are called: `minibrain --help` need not wait for plots and
classifiers.
"""

from minibrain.verbs import checks, runs, study

VERBS = (
    checks.declare_inspect,
    runs.declare_train,
    runs.declare_predict,
    runs.declare_evaluate,
    runs.declare_compare,
    study.declare_gradcheck,
    study.declare_explain,
    checks.declare_doctor,
)
