package admission

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/units"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

// Bounds of what a machine can have.
const (
	minKernelMemory = 24 << 20 // less, and a kernel of its own does not come up
	maxDisks        = 24       // as many slots as machines have
	maxDiskName     = 20       // bytes of a virtual disk's serial number
	maxKernelName   = 128
	ownDisk         = "root" // what the disk that a guest boots is called
)

// checkMachine says what is wrong with what a guest's machine is to be made of,
// given its engine and its image.
func (d *Door) checkMachine(s guest.Spec, e Engine, im image.Info) error {
	disk := im.Disk != ""
	switch h := s.Hardware; {
	case disk && !e.Disk:
		return &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: fmt.Sprintf("image %s is a disk, which engine %s cannot boot", s.Image, e.Name), Hint: "use --model vm"}
	case e.Kernel != "" && s.Memory < minKernelMemory:
		return errs.Bad("memory_bytes", units.Bytes(s.Memory)+" is too little for a kernel of its own", "give at least "+units.Bytes(minKernelMemory))
	case h.Firmware != "" && !disk:
		return errs.Bad("firmware", "image "+s.Image+" is a tree, which is booted without firmware", "leave it out, or use the image of a disk")
	case h.Kernel != "" && disk:
		return errs.Bad("kernel", "image "+s.Image+" is a disk, which brings its own kernel", "leave it out")
	case h.Kernel != "" && e.Kernel == "":
		return errs.Bad("kernel", fmt.Sprintf("guests of engine %s run on the host's kernel", e.Name), "leave it out, or use --model vm or paravirt")
	}
	if err := checkProcessor(s.Hardware.CPUModel, e); err != nil {
		return err
	}
	if err := checkKind(s.Hardware, e, disk); err != nil {
		return err
	}
	return d.checkDisks(s, e, disk)
}

// checkProcessor judges a model of a processor: "qemu64,+svm,-avx".
func checkProcessor(model string, e Engine) error {
	name, changes, changed := strings.Cut(model, ",")
	if model != "" && !slices.Contains(e.CPUModels, name) {
		return choice("cpu_model", "processor", name, e.Name, e.CPUModels)
	}
	if !changed {
		return nil
	}
	for change := range strings.SplitSeq(changes, ",") {
		feature, more := strings.CutPrefix(change, "+")
		if !more {
			feature, more = strings.CutPrefix(change, "-")
		}
		if !more || !slices.Contains(e.Features, feature) {
			return errs.Bad("cpu_model", fmt.Sprintf("%q adds no feature to a processor of engine %s and takes none away", change, e.Name),
				"write MODEL,+FEATURE,-FEATURE; lodge engine show "+e.Name+" -o json lists them")
		}
	}
	return nil
}

// choice says that something is not among what an engine offers.
func choice(field, what, given, engine string, all []string) error {
	if len(all) == 0 {
		return errs.Bad(field, fmt.Sprintf("guests of engine %s have no %s to choose", engine, what), "leave it out")
	}
	return errs.Bad(field, fmt.Sprintf("%q is no %s of engine %s", given, what, engine), "use one of: "+strings.Join(all, ", "))
}

// checkKind judges the kind of machine and its firmware.
func checkKind(h guest.Hardware, e Engine, disk bool) error {
	var names []string
	var kind Machine
	for i, m := range e.Machines {
		names = append(names, m.Name)
		if m.Name == h.Machine || h.Machine == "" && i == 0 {
			kind = m
		}
	}
	switch {
	case h.Machine != "" && kind.Name == "":
		return choice("machine", "machine", h.Machine, e.Name, names)
	case disk && len(kind.Firmware) == 0:
		return errs.Bad("machine", fmt.Sprintf("%s has no firmware and cannot boot a disk", kind.Name), "use one of: "+strings.Join(diskMachines(e), ", "))
	case h.Firmware != "" && !slices.Contains(kind.Firmware, h.Firmware):
		return errs.Bad("firmware", fmt.Sprintf("machine %s has no firmware %q here", kind.Name, h.Firmware), "use one of: "+strings.Join(kind.Firmware, ", ")+"; lodge engine show "+e.Name+" tells what is missing")
	case h.TPM && kind.Name == "":
		return choice("tpm", "machine", "", e.Name, nil)
	case h.TPM && !kind.TPM:
		return &errs.Error{Kind: errs.Unsupported, Field: "tpm", Msg: fmt.Sprintf("machine %s can have no TPM here", kind.Name), Hint: "lodge engine show " + e.Name + " tells what is missing"}
	}
	return nil
}

func diskMachines(e Engine) (names []string) {
	for _, m := range e.Machines {
		if len(m.Firmware) > 0 {
			names = append(names, m.Name)
		}
	}
	return names
}

// checkDisks judges a guest's further disks and discs.
func (d *Door) checkDisks(s guest.Spec, e Engine, disk bool) error {
	switch {
	case len(s.Disks) == 0:
		return nil
	case e.Form == guest.Tree:
		return errs.Bad("disks", fmt.Sprintf("guests of engine %s share the host's disks and have none of their own", e.Name), "leave them out, or use --model vm or paravirt")
	case len(s.Disks) > maxDisks:
		return errs.Bad("disks", fmt.Sprintf("%d are too many", len(s.Disks)), fmt.Sprintf("give at most %d", maxDisks))
	}
	for i, f := range s.Disks {
		field := fmt.Sprintf("disks[%d]", i)
		if err := d.checkFurtherDisk(field, f, disk); err != nil {
			return err
		}
		for _, other := range s.Disks[:i] {
			switch {
			case other.Name == f.Name:
				return errs.Bad(field+".name", fmt.Sprintf("%s is there twice", f.Name), "give each disk a name of its own")
			case f.Boot != 0 && other.Boot == f.Boot:
				return errs.Bad(field+".boot", fmt.Sprintf("%s is tried as number %d already", other.Name, f.Boot), "give each a place of its own")
			}
		}
	}
	return nil
}

func (d *Door) checkFurtherDisk(field string, f guest.FurtherDisk, disk bool) error {
	if err := model.CheckName(field+".name", f.Name); err != nil {
		return err
	}
	switch {
	case len(f.Name) > maxDiskName:
		return errs.Bad(field+".name", f.Name+" is too long", fmt.Sprintf("use at most %d characters", maxDiskName))
	case f.Name == ownDisk:
		return errs.Bad(field+".name", ownDisk+" is what the guest's own disk is called", "choose another name")
	case f.Disc == "" && (f.Size < minDisk || f.Size > maxDisk):
		return errs.Bad(field+".size_bytes", units.Bytes(f.Size)+" is out of range", "give a size such as 10GiB, or the iso of a disc")
	case f.Disc != "" && f.Size != 0:
		return errs.Bad(field+".size_bytes", "a disc is as large as its file", "leave out the size or the iso")
	case f.Boot < 0 || f.Boot > maxDisks:
		return errs.Bad(field+".boot", fmt.Sprintf("%d is out of range", f.Boot), "give the place in which firmware tries it, from 1")
	case f.Boot != 0 && !disk:
		return errs.Bad(field+".boot", "a guest of a tree boots its kernel, no disk", "leave it out, or use the image of a disk")
	case f.Disc == "":
		return nil
	case !filepath.IsAbs(f.Disc) || filepath.Clean(f.Disc) != f.Disc:
		return errs.Bad(field+".iso", fmt.Sprintf("%q is not a clean absolute path", f.Disc), "give a file of the host such as /srv/iso/debian.iso")
	}
	if err := d.CheckDisc(f.Disc); err != nil {
		return inField(field+".iso", err, "give the path of an ISO file on the host that runs lodged")
	}
	return nil
}

// checkKept says which disk with data a change would take away or cut short.
func checkKept(name string, was, is []guest.FurtherDisk) error {
	for _, old := range was {
		if old.Disc != "" {
			continue
		}
		i := slices.IndexFunc(is, func(f guest.FurtherDisk) bool { return f.Name == old.Name })
		switch {
		case i < 0 || is[i].Disc != "":
			return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Field: "disks", Msg: fmt.Sprintf("disk %s would go with what is on it", old.Name),
				Hint: fmt.Sprintf("keep it in the list, or remove it by name: lodge detach disk %s %s --delete-data", name, old.Name)}
		case is[i].Size < old.Size:
			return errs.Bad(fmt.Sprintf("disks[%d].size_bytes", i), fmt.Sprintf("disk %s has %s, and cannot become smaller", old.Name, units.Bytes(old.Size)), "give at least that")
		}
	}
	return nil
}

// imageInfo returns what is known of the image that a guest was made from: of
// the same content, or if that was replaced, of the same name.
func (d *Door) imageInfo(s guest.Spec) (info image.Info) {
	for _, im := range d.Tables.Images.List() {
		switch {
		case im.Status.Digest == s.Digest:
			return im.Status.Info
		case im.Name == s.Image:
			info = im.Status.Info
		}
	}
	return info
}
