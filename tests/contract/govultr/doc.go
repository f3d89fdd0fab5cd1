// Package contract holds the simulated cloud to Vultr's own Go clients, which are used as they are published: what
// they send must be taken, what they get must decode, and what they do on errors must work.
//
// The path of the simulator's binary is in VULTR_SIM; each test starts one of its own and stops it by SIGTERM.
package contract
