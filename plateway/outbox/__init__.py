"""Messages to other systems about recorded facts, relayed at least once, in order for each event.

The catalogue writes a message in the transaction of its fact (``catalog/outbox.py``); ``relay`` sends it to each target
until the target has it. Targets: `redis`, `amqp`, `webhook`, `directory`. A message that was sent and not yet recorded
as delivered is sent again with the same id.
"""
