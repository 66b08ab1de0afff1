"""From the bytes of a stranger to a request: shapes, sizes, files decoded in children, addresses fetched or refused."""
