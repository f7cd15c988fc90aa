"""The error tree. Each class is a decision for the caller, stated in its docstring.

SentinelError
├── Unavailable       a peer is away: keep the batch, retry with backoff
├── StoreError        the store cannot be used as it is: refuse to start, say the remedy
├── ModelError        a model directory cannot be used: go on without it, say why
├── TrainingError     nothing was learned: keep the model there is, say why
├── DataError         input data of a command cannot be read: exit 1, names file and line
└── ConfigError       exit 2: names file, key, value, what is allowed, the nearest known key

Whatever else escapes is a bug: the process stops, and its supervisor restarts it.
"""


class SentinelError(Exception):
    """Base of all errors that Sentinel raises on purpose."""


class Unavailable(SentinelError):
    """A peer (broker, disk) is away. Keep what you have and retry with backoff."""


class StoreError(SentinelError):
    """The store cannot be used as it is (locked, foreign, newer, damaged). Do not start."""


class ModelError(SentinelError):
    """A model directory is damaged or does not fit its profile. Go on without it."""


class TrainingError(SentinelError):
    """Training gave no model: too little to learn from, or it diverged. Keep the model there is."""


class DataError(SentinelError):
    """Input data of a command cannot be read. Exit 1."""


class ConfigError(SentinelError):
    """The configuration is wrong. Exit 2.

    Attributes:
        problems: one sentence a problem, each with its place and remedy.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
