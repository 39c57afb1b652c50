"""The HTTP interface: one file of routes per noun; who may call stands in each route's signature."""
