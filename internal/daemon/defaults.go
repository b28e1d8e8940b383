package daemon

import (
	"context"
	"math/rand/v2"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
	"lodge/internal/fabric/bridge"
	"lodge/internal/model/network"
	"lodge/internal/model/pool"
)

// defaultName is that of the pool and the network a guest gets when nothing
// else is asked for.
const defaultName = "default"

// domain is what guests' names end in. internal is reserved for such use
// (ICANN resolution 2024.07.29.06).
const domain = "lodge.internal"

// ensureDefaults makes the default pool and network of a host that has none: on
// the first start, and never again against the administrator's will, since a
// pool or network can only be removed while Lodge runs.
func (d *daemon) ensureDefaults(ctx context.Context) error {
	if d.tables.Pools.Len() == 0 {
		driver, why := d.opt.Pool, "it was asked for"
		if driver == "" {
			driver, why = d.drivers.preferredPool(d.opt.DataDir)
		}
		d.log.Info("making the default pool", "driver", driver, "because", why)
		_, err := d.tables.Pools.Create(ctx, defaultName, pool.Spec{Driver: driver, Size: d.opt.Size})
		if err != nil && !errs.Is(err, errs.Exists) {
			return err
		}
	}
	if d.tables.Networks.Len() > 0 {
		return nil
	}
	routes, err := bridge.Routes()
	if err != nil {
		return err
	}
	v4, v6, err := fabric.Pick(routes, rand.Uint64())
	if err != nil {
		return err
	}
	_, err = d.tables.Networks.Create(ctx, defaultName, network.Spec{Driver: bridgeDriver, IPv4: v4, IPv6: v6, NAT: true, Domain: domain})
	if errs.Is(err, errs.Exists) {
		return nil
	}
	return err
}
