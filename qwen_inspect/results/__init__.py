"""Result types: frozen dataclasses that the other rooms fill. Derived figures are properties. `None` means unknown.

Commands import only the modules they need: defining all types would take longer than most commands.
"""
