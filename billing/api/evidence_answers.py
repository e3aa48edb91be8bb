"""The answers about evidence of an instance."""

from billing.api.answer import Answer, Ms


class EvidenceInstance(Answer):
    """Which instance, and since when its engine runs."""

    instance: str
    model: str
    pool: str
    url: str
    epoch: str
    since_ms: Ms


class EvidenceWeights(Answer):
    """The SHA-256 of each file of its model, by name. `adapters`: those that it has loaded, with the engine's
    names for them, which hold the digest of their files.
    """

    sha256: dict[str, str]
    adapters: dict[str, str]


class EvidenceProcess(Answer):
    """Its engine's processes. `command`, `os_user` and `listening`: as the kernel says. `own_user`: whether
    nothing but this model's engines has this OS user; only a worker that is root can give it one.
    """

    engine: str
    engine_version: str
    command: list[str]
    os_user: str
    own_user: bool
    listening: list[str]


class EvidenceLogging(Answer):
    """Whether it may write requests into a log; and whether its model takes batches, whose files hold prompts
    and answers.
    """

    requests_logged: bool
    takes_batches: bool


class EvidenceCallers(Answer):
    """Who may call its model: the owner alone, if there is one."""

    owner: str | None
    visible_to: str | list[str]
    status: str


class EvidenceContract(Answer):
    """A contract of the model's owner that is in force."""

    contract: str
    tenant: str
    starts_ms: Ms
    ends_ms: Ms


class EvidenceIssued(Answer):
    """When it was signed, and when the worker read what it says."""

    at_ms: Ms
    read_ms: Ms


class EvidenceSections(Answer):
    """What is attested."""

    instance: EvidenceInstance
    weights: EvidenceWeights
    process: EvidenceProcess
    logging: EvidenceLogging
    callers: EvidenceCallers
    contracts: list[EvidenceContract]
    issued: EvidenceIssued


class EvidenceAnswer(Answer):
    """Evidence of an instance. `digests`: the SHA-256 of each section of `evidence`; these are what is signed
    (Ed25519, base64). `key`: the short name of the key.
    """

    version: int
    evidence: EvidenceSections
    digests: dict[str, str]
    key: str
    signature: str


class EvidenceKey(Answer):
    """The public key that checks evidence, in PEM."""

    key: str
    public_key: str
