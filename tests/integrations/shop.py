"""The tables that the tests of sessions use."""

from __future__ import annotations

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

WHERE = text("SELECT current_setting('cluster_name')")


class Base(DeclarativeBase):
    """What the tables belong to."""


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    stock: Mapped[int]
    parts: Mapped[list[Part]] = relationship(back_populates="item")


class Part(Base):
    __tablename__ = "part"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"))
    item: Mapped[Item] = relationship(back_populates="parts")
