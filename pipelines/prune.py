"""Lets results below a data root go that nobody has used for some time."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("cover"), packages_to_install=[], install_kfp_package=False)
def prune(data_root: str, keep_days: float = 30.0, blocks: list = []) -> int:
    """Remove results that no run has made or used for some days.

    Args:
        data_root: s3://bucket/prefix. Only the results of steps go; all else below it stays.
        keep_days: How many days, at least 1; 0 keeps all.
        blocks: What `blocks` returned in this run: what was used since then stays, however long the run took.

    Returns:
        How many results were removed.
    """
    from rsp.shared.dataroot import prune as tool
    from rsp.shared.dataroot import root_of, used_since
    from rsp.shared.locations import parse_address

    if not data_root or not float(keep_days):
        return 0
    since = used_since(parse_address(block["own"]) for block in blocks)
    result = tool(root_of(data_root), float(keep_days), since=since)
    print(f"{result.results} results removed, {result.bytes} bytes; {result.kept} kept")
    return result.results
