//! Reason phrases and the pages the gateway answers with on its own.

use ::http::StatusCode;

/// The phrase after a status this gateway makes itself; nginx's words, which APISIX's
/// clients see.
pub fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        302 => "Moved Temporarily",
        405 => "Not Allowed",
        408 => "Request Time-out",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        416 => "Requested Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        503 => "Service Temporarily Unavailable",
        504 => "Gateway Time-out",
        505 => "HTTP Version Not Supported",
        _ => status.canonical_reason().unwrap_or(""),
    }
}

/// The page for a status: the status and nothing a client could learn from.
pub fn html(status: StatusCode) -> String {
    let title = format!("{} {}", status.as_str(), reason(status));
    format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n\
         <center><h1>{title}</h1></center>\r\n<hr><center>Sluicegate</center>\r\n\
         </body>\r\n</html>\r\n"
    )
}
