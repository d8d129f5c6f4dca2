package scratch

import "context"

var DeviceOf = deviceOf

// ProjectOf is the quota project of an area's main part.
func ProjectOf(area string) uint32 {
	r, err := readRecord(area)
	if err != nil || len(r.Parts) == 0 {
		return 0
	}
	return r.Parts[0].Project
}

// QuotaOf reads the quota of a project on the file system of dir.
func QuotaOf(dir string, project uint32) (used, limit int64, err error) {
	q, err := openQuotas(dir)
	if err != nil {
		return 0, 0, err
	}
	defer q.close()
	used, limit, _, err = q.get(project)
	return used, limit, err
}

// Look looks at an area once, as Sample does.
func (a *Area) Look() error {
	uses, err := a.measure(context.Background(), false)
	if err == nil {
		a.note(uses)
	}
	return err
}
