"""Files made with inputs that the network made up, beside real inputs and none."""
