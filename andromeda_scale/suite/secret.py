"""Tells names and values that may hold a secret: neither may reach a file of results. No torch."""

from __future__ import annotations

import re

# Words of a name between underscores; the long ones anywhere. TOKENIZERS_PARALLELISM is none.
_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|(ACCESS|PRIVATE)_?KEY"
    r"|(?<![A-Z0-9])(KEYS?|PWD|PASS|PATS?|CREDS?|BEARER|API|AUTH|OAUTH|AUTHORIZATION|COOKIES?"
    r"|WEBHOOKS?|DSN|JWT|LOGIN|SAS)\d*(?![A-Z0-9])",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"\bgh[a-z]_|\bgithub_pat_|\bglpat-|\bhf_|\bsk-|\beyJ|\bxox[a-z]?-|\bA[KS]IA[0-9A-Z]{12}"
    r"|-----BEGIN|\bBearer\s|://[^/\s]*@|://\S*\?"  # an address with a user or a query
)


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable's name or value looks like a secret."""
    return bool(_NAME.search(name) or _VALUE.search(value))
