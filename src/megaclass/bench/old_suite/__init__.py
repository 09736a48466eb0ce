"""``megaclass bench suite``: the cases of a published report, as published or scaled down to this machine."""
