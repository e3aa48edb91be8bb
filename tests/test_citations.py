"""What a file refers to is in the repository: documents and their sections, decisions, files and links."""

import posixpath
import re

from tests.source_tree import PACKAGES, ROOT, tell, text_of, tracked

# Written once and kept as they were; and this file, which holds the patterns.
NOT_HELD = ("CHANGELOG.md", "LICENSE", "tests/test_citations.py", "tests/billing/cell/earlier/")
SECTION = re.compile(r"([\w./-]+\.md)[`)\]]*\s+§\s?(\d+)|(RFC \d+) §|§\s?(\d+)")
DECISION = re.compile(r"\bdecisions?[ /](\d{3})\b")
FILE = re.compile(
    rf"(?<![\w/.-])(?:(?:{'|'.join(sorted((*PACKAGES, 'tests', 'docs')))})(?:/[\w-]+)*"
    r"/[\w-]+\.(?:py|lua|md|txt|yml|toml|acl|lock))\b"
)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def texts() -> list[tuple[str, str]]:
    """Every text of the repository, by its path."""
    found = []
    for path in tracked():
        if path.startswith(NOT_HELD) or path.endswith(".lock"):
            continue
        try:
            found.append((path, text_of(path)))
        except UnicodeDecodeError:
            continue
    return found


def sections_of(document: str) -> set[str]:
    """The numbers of its numbered headings."""
    return set(re.findall(r"^## (\d+)\.", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE))


def test_a_cited_section_is_in_its_document() -> None:
    wrong = []
    for path, text in texts():
        for found in SECTION.finditer(re.sub(r"\n\s*(?:#|--|//)?\s*", " ", text)):
            document, section, rfc, bare = found.groups()
            if rfc:
                continue
            document = "docs/" + posixpath.basename(document) if document else path
            if not (ROOT / document).is_file() or (section or bare) not in sections_of(document):
                wrong.append(f"{path}: {found.group()}")
    assert not wrong, tell(wrong, "A cited section is a numbered heading of a document in docs/.")


def test_a_cited_decision_is_kept() -> None:
    kept = {path.rpartition("/")[2][:3] for path in tracked() if path.startswith("docs/decisions/")}
    wrong = [
        f"{path}: {found.group()}"
        for path, text in texts()
        for found in DECISION.finditer(text)
        if found.group(1) not in kept
    ]
    assert not wrong, tell(wrong, "A cited decision is a file in docs/decisions/.")


def test_a_cited_file_is_there() -> None:
    wrong = [
        f"{path}: {found.group()}"
        for path, text in texts()
        for found in FILE.finditer(text)
        if not (ROOT / found.group()).exists()
    ]
    assert not wrong, tell(wrong, "A path that a text names is a file of the repository.")


def test_a_link_leads_to_a_file() -> None:
    wrong = [
        f"{path}: {target}"
        for path, text in texts()
        if path.endswith(".md")
        for target in LINK.findall(text)
        if not (ROOT / posixpath.dirname(path) / target).exists()
    ]
    assert not wrong, tell(wrong, "A relative link in a document leads to a file of the repository.")
