"""Early answers: their attempts, the stages that follow them, and the gate that holds them back."""
