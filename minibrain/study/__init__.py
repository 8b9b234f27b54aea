"""For people who come to see how backpropagation works: a step of training, laid open."""
