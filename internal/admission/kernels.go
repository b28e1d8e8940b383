package admission

import (
	"context"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/kernel"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// BuildKernel asks for a kernel. One that is there, or on its way, is not built
// again unless refresh says so: the receipt then answers for the work under
// way.
func (d *Door) BuildKernel(ctx context.Context, by, name string, refresh bool) (Operation, error) {
	if err := d.CheckKernel(name); err != nil {
		return Operation{}, err
	}
	return d.transact(ctx, by, "kernel.build", func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := there(d.Tables.Kernels, kernel.Kind, name)
		switch {
		case errs.Is(err, errs.NotFound):
			r = d.Tables.Kernels.CreateIn(tx, name, kernel.Spec{Wish: 1})
		case err != nil:
			return nil, err
		default:
			failed := r.Status.Problem != nil && r.Status.Generation >= r.Generation
			if refresh && r.Status.Wish >= r.Spec.Wish || failed {
				r.Spec.Wish++
			}
			r = d.Tables.Kernels.UpdateIn(tx, r)
		}
		return []operation.Subject{subject(kernel.Kind, r.Meta)}, nil
	})
}

// RemoveKernel asks that a kernel be no more. One that a guest would boot next
// is refused.
func (d *Door) RemoveKernel(ctx context.Context, by, name string) (Operation, error) {
	return remove(ctx, d, by, d.Tables.Kernels, kernel.Kind, name, func(r tables.KernelRecord) error {
		users := d.KernelUsers()
		return d.unused("kernel/"+name, "remove them first, or build another kernel for them: lodge rm", func(g tables.GuestRecord) bool {
			return users[g.Name] == r.Name
		})
	})
}

// KernelUsers tells which kernel each guest boots, if it has one of its own.
func (d *Door) KernelUsers() map[string]string {
	users, there := map[string]string{}, d.kernels()
	for _, g := range d.Tables.Guests.List() {
		if name, err := d.kernelOf(g.Spec, there); err == nil && name != "" {
			users[g.Name] = name
		}
	}
	return users
}

// kernels lists those that can be booted.
func (d *Door) kernels() (names []string) {
	for _, r := range d.Tables.Kernels.List() {
		if r.Status.Digest != "" && r.Deleting == nil {
			names = append(names, r.Name)
		}
	}
	return names
}

// kernelsUnderWay are those that are asked for and cannot be booted yet, and what
// keeps them from it.
func (d *Door) kernelsUnderWay() map[string]*model.Problem {
	all := map[string]*model.Problem{}
	for _, r := range d.Tables.Kernels.List() {
		if r.Status.Digest == "" && r.Deleting == nil {
			all[r.Name] = r.Status.Problem
		}
	}
	return all
}

// kernelOf chooses the kernel that a guest boots: none if its engine runs it on
// the host's own, or boots it from a disk.
func (d *Door) kernelOf(s guest.Spec, there []string) (string, error) {
	e, err := d.Engine(s.Model, s.Engine)
	if err != nil || e.Kernel == "" {
		return "", err
	}
	for _, im := range d.Tables.Images.List() {
		if im.Status.Digest != s.Digest {
			continue
		}
		if im.Status.Info.Disk != "" {
			return "", nil
		}
		return kernel.Choose(there, kernel.Sort(e.Kernel), im.Status.Info.OS, im.Status.Info.Release, s.Hardware.Kernel)
	}
	return kernel.Choose(there, kernel.Sort(e.Kernel), "", "", s.Hardware.Kernel)
}

// checkKernel says why there is nothing that a guest could boot.
func (d *Door) checkKernel(s guest.Spec) error {
	name, err := d.kernelOf(s, d.kernels())
	switch {
	case err != nil:
		return kernel.OnItsWay(err, d.kernelsUnderWay())
	case name == "" && s.Hardware.Kernel != "":
		return errs.Bad("kernel", "guests of this model and image have none of their own to choose", "leave it out")
	}
	return nil
}
