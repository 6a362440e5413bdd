"""Building blocks of the JSON types: value types with JSON Schema keywords, and `TypedDict`."""

from __future__ import annotations

from ...typed import TYPE_CHECKING, Annotated, Any


class Keywords:
    """JSON Schema keywords of an annotated type. Read only by schema/generate.py, through pydantic's hook."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), **self.keywords}


Count = Annotated[int, Keywords(minimum=0)]
Positive = Annotated[int, Keywords(minimum=1)]
Number = Annotated[float, Keywords(minimum=0)]
Share = Annotated[float, Keywords(minimum=0, maximum=1)]
Sha256 = Annotated[str, Keywords(pattern="^[0-9a-f]{64}$")]

if TYPE_CHECKING:
    from typing import TypedDict as TypedDict
else:

    class TypedDict:
        """A plain class at run time: typing's own would add 6 ms to the start. schema/generate.py puts the real one here."""

        def __init_subclass__(cls, total: bool = True) -> None: ...

        def __new__(cls, name: str, keys: dict[str, type]) -> type:
            """For a key that is no identifier: `TypedDict("Name", {"class": str})`."""
            return cls
