"""Any network, taught by the labels of one site under the look that an adaptation paints of another."""
