fn main(){ let p=std::env::args().nth(1).unwrap(); let t=std::fs::read_to_string(&p).unwrap(); print!("{}", sluicegate_config::write_admin_key(&t,0,"KEYKEYKEY").unwrap()); }
