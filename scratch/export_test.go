package scratch

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
	return q.get(project)
}
