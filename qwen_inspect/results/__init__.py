"""What was found about a model. Built whole by `structure.inspect`; what can be derived is a property. `None` means unknown.

Each command imports the parts it needs: defining the types of all of them would take longer than most commands.
"""
