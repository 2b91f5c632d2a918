"""How addresses of mails are written in `SENTIMENT_MAIL_TO`: `a@example.org, "Team, B" <b@example.org>`."""

from email.errors import InvalidHeaderDefect
from email.headerregistry import Address
from email.message import EmailMessage

_FIX = (
    "it is not a list of mail addresses. Separate addresses by commas, and quote names that contain one, such as "
    'a@example.org, "Team, B" <b@example.org>'
)


def parse_mail_addresses(value: str) -> tuple[Address, ...]:
    """Return the addresses of a list that is separated by commas; none if the list is blank.

    `email.utils.getaddresses` is not used: Python's releases differ in what it returns for a list with a mistake.

    Raises:
        ValueError: the list contains something other than addresses.
    """
    if not value.strip():
        return ()
    message = EmailMessage()
    try:
        message["To"] = value
        header = message["To"]
    except Exception as error:  # the parser itself fails on some mistakes, such as `a@`, with exceptions of many kinds
        raise ValueError(_FIX) from error
    addresses: tuple[Address, ...] = header.addresses
    is_faulty = any(isinstance(defect, InvalidHeaderDefect) for defect in header.defects)
    if is_faulty or not addresses or not all(address.username and address.domain for address in addresses):
        raise ValueError(_FIX)
    return addresses
