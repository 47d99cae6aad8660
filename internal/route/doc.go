// Package route keeps the ip rules and routing tables of eipnet as a
// [plan.Routing] says: everything with protocol [model.Protocol] (rules: at
// our priorities too) is ours, nothing else is ever touched.
package route
